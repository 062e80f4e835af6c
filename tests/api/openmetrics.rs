//! A reader of OpenMetrics 1.0 text that takes nothing that the specification forbids: one family after another, its
//! metadata before its samples and each at most once, `# EOF` and nothing behind it, suffixes by type, labels escaped, the
//! samples of one set of labels side by side.

use std::collections::{BTreeMap, BTreeSet};

/// Samples by name with labels, as text.
pub type Samples = BTreeMap<String, f64>;

#[derive(Default)]
struct Family {
    name: String,
    kind: Option<String>,
    unit: Option<String>,
    help: bool,
    sampled: bool,
    /// Labels of the last sample, and all that came before them.
    labels: Option<Vec<(String, String)>>,
    past: BTreeSet<Vec<(String, String)>>,
}

impl Family {
    /// Names that its samples may have.
    fn takes(&self, sample: &str) -> bool {
        let suffixes: &[&str] = match self.kind.as_deref() {
            Some("counter") => &["_total", "_created"],
            Some("info") => &["_info"],
            Some("gauge") => &[""],
            other => panic!("type {other:?}"),
        };
        suffixes.iter().any(|suffix| sample == format!("{}{suffix}", self.name))
    }

    fn finish(&self, seen: &mut BTreeSet<String>) {
        if self.name.is_empty() {
            return;
        }
        assert!(seen.insert(self.name.clone()), "family {} comes twice", self.name);
        assert!(self.kind.is_some() && self.help, "family {} lacks metadata", self.name);
        if let Some(unit) = &self.unit {
            assert!(self.name.ends_with(&format!("_{unit}")), "{} is not in {unit}", self.name);
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Labels, and what follows them.
fn labels(text: &str) -> (Vec<(String, String)>, &str) {
    let Some(mut rest) = text.strip_prefix('{') else { return (Vec::new(), text) };
    let mut all: Vec<(String, String)> = Vec::new();
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label");
        assert!(is_name(name) && all.iter().all(|(other, _)| other != name), "label {name}");
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().expect("the end of a label") {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().expect("an escape").1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("escape \\{c}"),
                }),
                (_, c) => value.push(c),
            }
        };
        all.push((name.to_owned(), value));
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (all, rest.strip_prefix('}').expect("the end of labels")),
        }
    }
}

/// Reads all, or panics.
pub fn read(text: &str) -> Samples {
    let body = text.strip_suffix("# EOF\n").expect("# EOF at the end");
    assert!(body.is_empty() || body.ends_with('\n'));
    let mut samples = Samples::new();
    let mut seen = BTreeSet::new();
    let mut family = Family::default();
    for line in body.lines() {
        assert!(!line.is_empty() && !line.contains('\r'), "{line:?}");
        if let Some(metadata) = line.strip_prefix("# ") {
            let mut words = metadata.splitn(3, ' ');
            let (what, name) = (words.next().unwrap(), words.next().expect("a family"));
            let value = words.next().expect("metadata");
            assert!(is_name(name), "{line}");
            if name != family.name {
                family.finish(&mut seen);
                family = Family { name: name.to_owned(), ..Family::default() };
            }
            assert!(!family.sampled, "metadata behind samples: {line}");
            match what {
                "TYPE" => assert!(family.kind.replace(value.to_owned()).is_none(), "{line}"),
                "UNIT" => assert!(family.unit.replace(value.to_owned()).is_none(), "{line}"),
                "HELP" => assert!(!std::mem::replace(&mut family.help, true), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        assert!(!line.starts_with('#'), "{line}");
        let end = line.find(['{', ' ']).expect("a sample");
        let (name, rest) = line.split_at(end);
        assert!(is_name(name) && family.takes(name), "{line} in family {}", family.name);
        let (labels, rest) = labels(rest);
        let value: f64 = rest.strip_prefix(' ').expect("a value").parse().expect("a number");
        assert!(value.is_finite() && value >= 0.0, "{line}");
        family.sampled = true;
        if family.labels.as_ref() != Some(&labels) {
            family.past.extend(family.labels.replace(labels.clone()));
        }
        assert!(!family.past.contains(&labels), "torn apart: {line}");
        assert!(samples.insert(format!("{name}{labels:?}"), value).is_none(), "twice: {line}");
    }
    family.finish(&mut seen);
    samples
}

#[test]
fn the_reader_is_strict() {
    let good =
        "# TYPE a_bytes counter\n# UNIT a_bytes bytes\n# HELP a_bytes X y.\na_bytes_total{b=\"c\\\"\"} 1\n# EOF\n";
    assert_eq!(read(good).len(), 1);
    assert_eq!(read(&good.replace("} 1\n", "} 1\na_bytes_created{b=\"c\\\"\"} 1\n")).len(), 2);
    for (from, to) in [
        ("# EOF\n", ""),
        ("# EOF\n", "# EOF\n\n"),
        ("a_bytes_total{", "a_bytes{"),
        ("counter", "gauge"),
        (" 1\n", " x\n"),
        (" 1\n", " -1\n"),
        ("# HELP a_bytes X y.\n", ""),
        ("# UNIT a_bytes bytes", "# UNIT a_bytes seconds"),
        ("\\\"", "\\x"),
        ("# TYPE a_bytes counter\n", "# TYPE a_bytes counter\n# TYPE a_bytes counter\n"),
        ("} 1\n", "} 1\na_bytes_total{b=\"c\\\"\"} 1\n"),
        ("} 1\n", "} 1\n\n"),
        ("} 1\n", "} 1\na_bytes_total{b=\"d\"} 1\na_bytes_created{b=\"c\\\"\"} 1\n"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        assert!(std::panic::catch_unwind(|| read(&bad)).is_err(), "{bad}");
    }
}
