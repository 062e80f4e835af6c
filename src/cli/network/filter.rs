//! `--filter KEY=VALUE` of `network ls` and `network prune`.
//!
//! Different keys must all hold. Of several values of one key one is enough, but of labels every one must be there
//! (`label`) or none (`label!`). Names and ids are matched anywhere, as Docker does by regular expressions; of these there
//! are `^` and `$`, the others are refused.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::network::definition::Network;
use crate::network::lease::Lease;
use crate::network::timestamp::Timestamp;
use crate::telemetry::time;

/// What was asked for.
#[derive(Debug, Default)]
pub struct Filters {
    values: BTreeMap<String, Vec<String>>,
    until: Option<Timestamp>,
}

impl Filters {
    /// Keys of `network ls`.
    pub const LS: [&'static str; 7] = ["driver", "id", "label", "name", "scope", "type", "dangling"];
    /// Keys of `network prune`.
    pub const PRUNE: [&'static str; 3] = ["until", "label", "label!"];

    /// Reads them.
    pub fn parse(texts: &[String], keys: &[&str]) -> Result<Self, String> {
        let mut filters = Self::default();
        for text in texts {
            let bad = || {
                format!(
                    "invalid argument \"{}\" for \"--filter\": invalid filter (should be name=value)",
                    text.escape_default()
                )
            };
            let (key, value) = text.split_once('=').ok_or_else(bad)?;
            let (key, value) = (key.trim().to_lowercase(), value.trim());
            if !keys.contains(&key.as_str()) {
                return Err(format!("invalid filter '{}'; there are {}", key.escape_default(), keys.join(", ")));
            }
            match key.as_str() {
                "type" if !matches!(value, "custom" | "builtin") => {
                    return Err(format!(
                        "invalid filter: 'type'='{}'; there are custom and builtin",
                        value.escape_default()
                    ));
                }
                "dangling" if !matches!(value, "0" | "1" | "true" | "false") => {
                    return Err(
                        "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")"
                            .to_owned(),
                    );
                }
                "dangling" if filters.values.contains_key("dangling") => {
                    return Err("got more than one value for filter key \"dangling\"".to_owned());
                }
                "name" | "id" => check_pattern(&key, value)?,
                "until" if filters.until.is_some() => return Err("more than one until filter specified".to_owned()),
                "until" => filters.until = Some(moment(value, time::now())?),
                _ => {}
            }
            filters.values.entry(key).or_default().push(value.to_owned());
        }
        Ok(filters)
    }

    /// Whether it matters who is in a network.
    pub fn needs_members(&self) -> bool {
        self.values.contains_key("dangling")
    }

    /// Whether a network is one of those. `live` is asked only if it matters.
    pub fn match_network(&self, network: &Network, live: impl Fn() -> Vec<Lease>) -> bool {
        let label = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => network.labels.get(key).is_some_and(|found| found == value),
            None => network.labels.contains_key(wanted),
        };
        self.values.iter().all(|(key, values)| match key.as_str() {
            "driver" => values.contains(&network.driver),
            "scope" => values.iter().any(|value| value == "local"),
            "type" => values.iter().any(|value| (value == "builtin") == network.is_predefined()),
            "name" => values.iter().any(|value| matches(value, &network.name)),
            "id" => values.iter().any(|value| matches(value, &network.id)),
            "label" => values.iter().all(label),
            "label!" => !values.iter().any(label),
            "dangling" => {
                let wanted = values.iter().any(|value| matches!(value.as_str(), "1" | "true"));
                (!network.is_predefined() && live().is_empty()) == wanted
            }
            "until" => self.until.is_none_or(|until| network.created < until),
            _ => true,
        })
    }
}

fn check_pattern(key: &str, value: &str) -> Result<(), String> {
    let inner = value.strip_prefix('^').unwrap_or(value);
    let inner = inner.strip_suffix('$').unwrap_or(inner);
    match inner.chars().find(|c| "^$*+?()[]{}|\\".contains(*c)) {
        None => Ok(()),
        Some(c) => Err(format!(
            "invalid filter: '{key}'='{}': of regular expressions there are ^ and $ at the ends, not '{c}'",
            value.escape_default()
        )),
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    let (start, pattern) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (end, pattern) = pattern.strip_suffix('$').map_or((false, pattern), |rest| (true, rest));
    match (start, end) {
        (true, true) => text == pattern,
        (true, false) => text.starts_with(pattern),
        (false, true) => text.ends_with(pattern),
        (false, false) => text.contains(pattern),
    }
}

/// A time, or a span before now.
fn moment(text: &str, now: Duration) -> Result<Timestamp, String> {
    time::parse(text, now).map(Timestamp::since_epoch).ok_or_else(|| {
        format!(
            "invalid value \"{}\" for filter 'until': give a span such as 24h or 1h30m, or a time such as \
             2026-01-31T12:00:00Z",
            text.escape_default()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(name: &str, labels: &[(&str, &str)]) -> Network {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let created = "2026-01-31T12:00:00Z".parse().unwrap();
        Network { name: name.to_owned(), labels, created, ..Network::bridge(0) }
    }

    fn select(texts: &[&str], keys: &[&str]) -> Result<Vec<String>, String> {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        let filters = Filters::parse(&texts, keys)?;
        let all = [
            network("bridge", &[]),
            network("web", &[("team", "a"), ("keep", "")]),
            network("web-db", &[("team", "b")]),
        ];
        Ok(all.into_iter().filter(|n| filters.match_network(n, Vec::new)).map(|n| n.name).collect())
    }

    #[test]
    fn of_ls() {
        let ls = |texts: &[&str]| select(texts, &Filters::LS).unwrap().join(" ");
        assert_eq!(ls(&[]), "bridge web web-db");
        assert_eq!(ls(&["name=web"]), "web web-db");
        assert_eq!(ls(&["name=^web$"]), "web");
        assert_eq!(ls(&["name=b$", "name=^br"]), "bridge web web-db");
        assert_eq!(ls(&["label=team"]), "web web-db");
        assert_eq!(ls(&["label=team=a", "label=keep"]), "web");
        assert_eq!(ls(&["label=team=a", "label=team=b"]), "");
        assert_eq!(ls(&["type=custom", "name=db"]), "web-db");
        assert_eq!(ls(&["type=builtin", "type=custom"]), "bridge web web-db");
        assert_eq!(ls(&["dangling=true"]), "web web-db");
        assert_eq!(ls(&["dangling=0"]), "bridge");
        assert_eq!(ls(&["driver=null"]), "");
        assert_eq!(ls(&["driver=null", "driver=bridge", "scope=local"]), "bridge web web-db");
        assert_eq!(ls(&["scope=swarm"]), "");
    }

    #[test]
    fn of_prune() {
        let prune = |texts: &[&str]| select(texts, &Filters::PRUNE).unwrap().join(" ");
        assert_eq!(prune(&["label!=keep"]), "bridge web-db");
        assert_eq!(prune(&["label!=team=a", "label=team"]), "web-db");
        assert_eq!(prune(&["until=2026-01-31T12:00:00Z"]), "");
        assert_eq!(prune(&["until=2026-01-31T12:00:01Z"]), "bridge web web-db");
        assert_eq!(prune(&["until=1000000000"]), "");
    }

    #[test]
    fn spans_and_times() {
        #[allow(clippy::duration_suboptimal_units, reason = "as date -d @… takes it")]
        let now = Duration::from_secs(1_769_860_800);
        for (text, time) in [
            ("0s", "2026-01-31T12:00:00Z"),
            ("24h", "2026-01-30T12:00:00Z"),
            ("1h30m", "2026-01-31T10:30:00Z"),
            ("2026-01-01", "2026-01-01T00:00:00Z"),
            ("24", "1970-01-01T00:00:24Z"),
        ] {
            assert_eq!(moment(text, now).unwrap().to_string(), time, "{text}");
        }
        assert!(moment("yesterday", now).unwrap_err().contains("\"yesterday\""));
    }

    #[test]
    fn what_is_refused() {
        for (text, part) in [
            ("name", "should be name=value"),
            ("colour=red", "invalid filter 'colour'; there are driver, id"),
            ("until=24h", "invalid filter 'until'"),
            ("type=mine", "invalid filter: 'type'='mine'"),
            (
                "dangling=maybe",
                "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")",
            ),
            ("name=a.*b", "not '*'"),
        ] {
            let error = select(&[text], &Filters::LS).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(select(&["dangling=1", "dangling=0"], &Filters::LS).unwrap_err().contains("more than one value"));
        assert!(select(&["until=1h", "until=2h"], &Filters::PRUNE).unwrap_err().contains("more than one until"));
        assert!(select(&["until=soon"], &Filters::PRUNE).unwrap_err().contains("\"soon\""));
    }
}
