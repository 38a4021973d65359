//! Prometheus' text format, version 0.0.4: families with HELP and TYPE, samples with labels.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::fmt::Write;

/// What kind of metric a family is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A page of metrics as it is written.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Begins a family: its samples follow.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        // Writing to a string does not fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {}\n# TYPE {name} {}", escape(help, false), kind.as_str());
        Family { page: self, name }
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }
}

/// A family that takes samples.
pub struct Family<'a> {
    page: &'a mut Page,
    name: &'static str,
}

impl Family<'_> {
    /// One sample.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) -> &mut Self {
        self.line("", labels, value.into());
        self
    }

    /// A histogram: `buckets` are upper bounds with the number of observations in each alone (not
    /// cumulated), `rest` those above the last bound.
    pub fn histogram(&mut self, buckets: impl IntoIterator<Item = (f64, u64)>, rest: u64, sum: f64) {
        let mut count = 0;
        for (bound, n) in buckets {
            count += n;
            self.line("_bucket", &[("le", &bound.to_string())], Value::Whole(count));
        }
        count += rest;
        self.line("_bucket", &[("le", "+Inf")], Value::Whole(count));
        self.line("_sum", &[], Value::Real(sum));
        self.line("_count", &[], Value::Whole(count));
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: Value) {
        let out = &mut self.page.0;
        let _ = write!(out, "{}{suffix}", self.name);
        for (i, (name, value)) in labels.iter().enumerate() {
            let _ = write!(out, "{}{name}=\"{}\"", if i == 0 { '{' } else { ',' }, escape(value, true));
        }
        if !labels.is_empty() {
            out.push('}');
        }
        let _ = match value {
            Value::Whole(n) => writeln!(out, " {n}"),
            Value::Real(x) => writeln!(out, " {x}"),
        };
    }
}

/// A sample's value.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A count.
    Whole(u64),
    /// A measure.
    Real(f64),
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Self::Whole(n)
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Self::Whole(n as u64)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Whole(yes.into())
    }
}

impl From<f64> for Value {
    fn from(x: f64) -> Self {
        Self::Real(x)
    }
}

/// Backslash and line feed are escaped, in labels the quotation mark too.
fn escape(text: &str, label: bool) -> String {
    let mut out = text.replace('\\', "\\\\").replace('\n', "\\n");
    if label {
        out = out.replace('"', "\\\"");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_as_the_format_wants() {
        let mut page = Page::default();
        page.family("a_total", Kind::Counter, "As.\nAll \\ of them.")
            .sample(&[], 3u64)
            .sample(&[("x", "q\"\\\n"), ("y", "é")], 0.5);
        page.family("b_seconds", Kind::Histogram, "Bs.")
            .histogram([(0.01, 2), (1.0, 1)], 4, 10.25);
        assert_eq!(
            page.finish(),
            "# HELP a_total As.\\nAll \\\\ of them.\n# TYPE a_total counter\na_total 3\na_total{x=\"q\\\"\\\\\\n\",y=\"é\"} 0.5\n\
             # HELP b_seconds Bs.\n# TYPE b_seconds histogram\nb_seconds_bucket{le=\"0.01\"} 2\nb_seconds_bucket{le=\"1\"} 3\n\
             b_seconds_bucket{le=\"+Inf\"} 7\nb_seconds_sum 10.25\nb_seconds_count 7\n"
        );
    }
}
