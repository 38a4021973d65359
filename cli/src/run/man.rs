//! Manual pages, one per command, made from the definition of the command line like `--help`.

use std::{fs, io, path::Path};

use clap::CommandFactory;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use crate::{args::Cli, failure::Failure};

/// Users' commands.
const SECTION: &str = "1";

/// Writes every page into `dir`, which is made.
pub fn run(dir: &Path) -> Result<(), Failure> {
    let write = |e| Failure::File(dir.to_owned(), e);
    fs::create_dir_all(dir).map_err(write)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, dir).map_err(write)
}

fn pages(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for sub in command.get_subcommands() {
        pages(sub, dir)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    fs::write(dir.join(format!("{name}.{SECTION}")), page(command.clone())?)
}

/// A page; the examples are shown as they are typed.
fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let after = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let subcommands = command.has_subcommands();
    let man = Man::new(command.after_long_help(None).after_help(None))
        .section(SECTION)
        .source(concat!("meshd ", env!("CARGO_PKG_VERSION")))
        .manual("meshd");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if subcommands {
        man.render_subcommands_section(&mut out)?;
    }
    let mut roff = Roff::new();
    for paragraph in after.split("\n\n") {
        let (heading, text) = match paragraph.strip_prefix("Examples:\n") {
            Some(examples) => ("EXAMPLES", examples),
            None => ("NOTES", paragraph),
        };
        if text.trim().is_empty() {
            continue;
        }
        roff.control("SH", [heading]);
        let examples = heading == "EXAMPLES";
        if examples {
            roff.control("nf", []);
        }
        for line in text.lines() {
            roff.text([roman(if examples { line.strip_prefix("  ").unwrap_or(line) } else { line })]);
        }
        if examples {
            roff.control("fi", []);
        }
    }
    roff.to_writer(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_shown_as_typed() {
        let command = clap::Command::new("x")
            .about("does x")
            .after_long_help("Why so.\n\nExamples:\n  x  a\n  x .b\\c");
        let page = String::from_utf8(page(command).unwrap()).unwrap();
        assert!(page.contains(".SH NOTES\nWhy so.\n"), "{page}");
        assert!(page.contains(".SH EXAMPLES\n.nf\nx  a\nx .b\\\\c\n.fi\n"), "{page}");
    }

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        run(&dir.path().join("man")).unwrap_or_else(|e| panic!("{e}"));
        for page in ["meshctl.1", "meshctl-run.1", "meshctl-network.1", "meshctl-network-create.1"] {
            let text = fs::read_to_string(dir.path().join("man").join(page)).unwrap();
            assert!(text.contains(".SH EXAMPLES") || page == "meshctl-network.1", "{page}: {text}");
        }
    }
}
