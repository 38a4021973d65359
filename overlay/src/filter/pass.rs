//! Lets containers' packets pass the FORWARD chains of iptables where these drop what they do not know,
//! as Docker sets them up: a verdict of our own table can not, because every table has to agree.
//!
//! Two rules at the end of such a chain, with a comment that marks them; whoever wants to forbid more
//! does so before them (Docker's users in DOCKER-USER). Which network may reach what is decided in
//! `inet meshd`. An iptables of the older kind (xtables, iptables-legacy) is not seen by nft, and left alone.

use serde_json::Value;

/// Families that iptables has.
pub(super) const FAMILIES: [&str; 2] = ["ip", "ip6"];
/// The rules' mark.
const COMMENT: &str = "meshd";
/// The rules, without family and place: into our bridges, and out of them.
const RULES: [&str; 2] = ["oifname \"mb-*\"", "iifname \"mb-*\""];

/// One family's FORWARD chain.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forward {
    /// It drops what no rule accepts.
    drops: bool,
    /// Handles of our rules in it.
    ours: Vec<u64>,
}

impl Forward {
    /// Reads what `nft -j list chain FAMILY filter FORWARD` prints.
    pub(super) fn read(text: &str) -> Option<Self> {
        let document: Value = serde_json::from_str(text).ok()?;
        let mut out = Self::default();
        for object in document.get("nftables")?.as_array()? {
            if let Some(chain) = object.get("chain") {
                out.drops = chain.get("policy").and_then(Value::as_str) == Some("drop");
            }
            if let Some(rule) = object
                .get("rule")
                .filter(|r| r.get("comment").and_then(Value::as_str) == Some(COMMENT))
            {
                out.ours.push(rule.get("handle")?.as_u64()?);
            }
        }
        Some(out)
    }

    /// Containers' packets are dropped here.
    pub(super) fn is_blocking(&self) -> bool {
        self.drops && self.ours.len() < RULES.len()
    }

    /// The commands that remove our rules.
    pub(super) fn removal(&self, family: &str) -> String {
        let delete = |handle: &u64| format!("delete rule {family} filter FORWARD handle {handle}\n");
        self.ours.iter().map(delete).collect()
    }

    /// The commands that put our rules at the end, each once.
    pub(super) fn passing(&self, family: &str) -> String {
        let add = |rule: &&str| format!("add rule {family} filter FORWARD {rule} counter accept comment \"{COMMENT}\"\n");
        self.removal(family) + &RULES.iter().map(add).collect::<String>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 2, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 9, "expr": [{"jump": {"target": "DOCKER-USER"}}]}},
        {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 11, "comment": "meshd", "expr": [{"accept": null}]}}]}"#;

    #[test]
    fn a_chain_that_drops_is_passed_by_both_rules() {
        let half = Forward::read(TEXT).unwrap();
        assert_eq!(
            half,
            Forward {
                drops: true,
                ours: vec![11]
            }
        );
        assert!(half.is_blocking());
        let commands = half.passing("ip");
        assert_eq!(commands.lines().count(), 3, "{commands}");
        assert!(commands.starts_with("delete rule ip filter FORWARD handle 11\n"));
        let whole = Forward {
            ours: vec![11, 12],
            drops: true,
        };
        let open = Forward::read(&TEXT.replace("\"drop\"", "\"accept\"")).unwrap();
        assert!(!whole.is_blocking() && !open.is_blocking());
        for junk in ["", "{}", "[]", "{\"nftables\": 1}"] {
            assert_eq!(Forward::read(junk), None, "{junk}");
        }
    }
}
