//! A command line in the manner of getopt_long(3), as the callers of slirp4netns have it at their fingertips.
//!
//! Words go by from left to right; each call of [`Getopt::next_option`] gives one option or one complaint:
//!
//! - options and other words mix freely, unless `POSIXLY_CORRECT` is in the environment: then the first other word ends
//!   the options. `--` ends them always; a lone `-` is a word like any other;
//! - `--name=value`, `--name value`, `-nvalue`, `-n value`; flags bundle (`-ab`), the last of a bundle may take a value.
//!   A value may begin with a dash;
//! - a long name may be cut short as long as it means one thing. The whole name always wins; several names that mean the
//!   same are one thing.
//!
//! Complaints have the C library's words (glibc 2.36, English), without the program's name before them. Values are bytes,
//! not text. Not supported, because nothing here asks for it: optional values, long options with one dash, `-W`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// One option that may be given. `id` tells what it means; two names with one id are the same.
#[derive(Clone, Copy, Debug)]
pub struct Name<T> {
    /// After two dashes.
    pub long: &'static str,
    /// After one dash.
    pub short: Option<u8>,
    /// Takes a value, always.
    pub valued: bool,
    /// What it is.
    pub id: T,
}

/// What is wrong with a word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Complaint {
    /// No such long option.
    #[error("unrecognized option '--{0}'")]
    Unknown(String),
    /// No such short option.
    #[error("invalid option -- '{0}'")]
    UnknownShort(String),
    /// The start of several.
    #[error("option '--{typed}' is ambiguous; possibilities: '--{}'", candidates.join("' '--"))]
    Ambiguous {
        /// What was typed, value and all.
        typed: String,
        /// What it may mean, in the order of the table.
        candidates: Vec<&'static str>,
    },
    /// Nothing follows.
    #[error("option '--{0}' requires an argument")]
    NoValue(&'static str),
    /// Nothing follows a short option.
    #[error("option requires an argument -- '{0}'")]
    NoValueShort(char),
    /// A flag with a value.
    #[error("option '--{0}' doesn't allow an argument")]
    Value(&'static str),
}

/// An option as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given<T> {
    /// Which.
    pub id: T,
    /// Its value; None for a flag.
    pub value: Option<OsString>,
}

/// A command line on its way through.
#[derive(Debug)]
pub struct Getopt<'a, T> {
    names: &'a [Name<T>],
    words: VecDeque<OsString>,
    /// Rest of a bundle of short options.
    bundle: VecDeque<u8>,
    others: Vec<OsString>,
    /// The first word that is no option ends them.
    posix: bool,
}

impl<'a, T: Copy + PartialEq> Getopt<'a, T> {
    /// `words` without the program's name.
    pub fn new(names: &'a [Name<T>], words: impl IntoIterator<Item = OsString>, posix: bool) -> Self {
        Self { names, words: words.into_iter().collect(), bundle: VecDeque::new(), others: Vec::new(), posix }
    }

    /// The next option; None when there is none left.
    pub fn next_option(&mut self) -> Option<Result<Given<T>, Complaint>> {
        loop {
            if let Some(letter) = self.bundle.pop_front() {
                return Some(self.short(letter));
            }
            let word = self.words.pop_front()?;
            match word.as_bytes() {
                b"--" => {
                    self.others.extend(self.words.drain(..));
                    return None;
                }
                [b'-', b'-', name @ ..] => return Some(self.long(name)),
                [b'-', letters @ ..] if !letters.is_empty() => self.bundle = letters.iter().copied().collect(),
                _ => {
                    self.others.push(word);
                    if self.posix {
                        self.others.extend(self.words.drain(..));
                        return None;
                    }
                }
            }
        }
    }

    /// The words that are no options, in order.
    pub fn others(self) -> Vec<OsString> {
        self.others.into_iter().chain(self.words).collect()
    }

    fn long(&mut self, typed: &[u8]) -> Result<Given<T>, Complaint> {
        let mut parts = typed.splitn(2, |&b| b == b'=');
        let (start, value) = (parts.next().unwrap_or_default(), parts.next());
        let name = self.find(typed, start)?;
        let value = match (name.valued, value) {
            (false, Some(_)) => return Err(Complaint::Value(name.long)),
            (false, None) => None,
            (true, Some(value)) => Some(OsStr::from_bytes(value).to_owned()),
            (true, None) => Some(self.words.pop_front().ok_or(Complaint::NoValue(name.long))?),
        };
        Ok(Given { id: name.id, value })
    }

    fn find(&self, typed: &[u8], start: &[u8]) -> Result<Name<T>, Complaint> {
        let shown = || String::from_utf8_lossy(typed).into_owned();
        let candidates: Vec<&Name<T>> = self.names.iter().filter(|n| n.long.as_bytes().starts_with(start)).collect();
        if let Some(exact) = candidates.iter().find(|n| n.long.len() == start.len()) {
            return Ok(**exact);
        }
        let first = *candidates.first().ok_or_else(|| Complaint::Unknown(shown()))?;
        let others: Vec<_> =
            candidates.iter().skip(1).filter(|n| n.id != first.id || n.valued != first.valued).collect();
        if others.is_empty() {
            return Ok(*first);
        }
        let candidates = std::iter::once(first.long).chain(others.into_iter().map(|n| n.long)).collect();
        Err(Complaint::Ambiguous { typed: shown(), candidates })
    }

    fn short(&mut self, letter: u8) -> Result<Given<T>, Complaint> {
        let Some(name) = self.names.iter().find(|n| n.short == Some(letter)) else {
            return Err(Complaint::UnknownShort(String::from_utf8_lossy(&[letter]).into_owned()));
        };
        let value = if !name.valued {
            None
        } else if self.bundle.is_empty() {
            Some(self.words.pop_front().ok_or(Complaint::NoValueShort(char::from(letter)))?)
        } else {
            Some(OsString::from_vec(self.bundle.drain(..).collect()))
        };
        Ok(Given { id: name.id, value })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [Name<u8>; 7] = [
        Name { long: "all", short: Some(b'a'), valued: false, id: b'a' },
        Name { long: "size", short: Some(b's'), valued: true, id: b's' },
        Name { long: "out", short: None, valued: true, id: b'o' },
        Name { long: "out6", short: None, valued: true, id: b'6' },
        Name { long: "colour", short: None, valued: false, id: b'c' },
        Name { long: "color", short: None, valued: false, id: b'c' },
        Name { long: "column", short: Some(b'n'), valued: false, id: b'n' },
    ];

    type Parsed = (Vec<Result<(char, Option<String>), String>>, Vec<String>);

    fn text(word: OsString) -> String {
        word.to_string_lossy().into_owned()
    }

    fn parse_as(words: &[&str], posix: bool) -> Parsed {
        let mut getopt = Getopt::new(&NAMES, words.iter().map(OsString::from), posix);
        let mut options = Vec::new();
        while let Some(option) = getopt.next_option() {
            let option = option.map(|given| (char::from(given.id), given.value.map(text)));
            options.push(option.map_err(|complaint| complaint.to_string()));
        }
        (options, getopt.others().into_iter().map(text).collect())
    }

    fn parse(words: &[&str]) -> Parsed {
        parse_as(words, false)
    }

    /// Expected options: a letter, and after it the value if it takes one.
    fn given(options: &[&str]) -> Vec<Result<(char, Option<String>), String>> {
        let one = |text: &&str| {
            let (id, value) = text.split_at(1);
            Ok((id.chars().next().unwrap(), value.strip_prefix(':').map(str::to_owned)))
        };
        options.iter().map(one).collect()
    }

    #[test]
    fn forms_of_an_option() {
        for (words, expected) in [
            (&["-a"][..], &["a"][..]),
            (&["-an"], &["a", "n"]),
            (&["-s5"], &["s:5"]),
            (&["-s", "5"], &["s:5"]),
            (&["-as5n"], &["a", "s:5n"]),
            (&["-s=5"], &["s:=5"]),
            (&["--size=5"], &["s:5"]),
            (&["--size", "5"], &["s:5"]),
            (&["--size="], &["s:"]),
            (&["--size=a=b"], &["s:a=b"]),
            (&["--size", "--all"], &["s:--all"]),
            (&["-s", "--"], &["s:--"]),
            (&["--si=1", "--a"], &["s:1", "a"]),
            // The whole name wins over the longer one; one meaning under two names is one.
            (&["--out=1", "--out6=2"], &["o:1", "6:2"]),
            (&["--colo", "--color"], &["c", "c"]),
        ] {
            assert_eq!(parse(words), (given(expected), vec![]), "{words:?}");
        }
    }

    #[test]
    fn order() {
        let mixed = &["x", "-a", "y", "--size", "5", "-", "", "--", "-a", "--"][..];
        let others = ["x", "y", "-", "", "-a", "--"].map(str::to_owned).to_vec();
        assert_eq!(parse(mixed), (given(&["a", "s:5"]), others));
        let all = mixed.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        assert_eq!(parse_as(mixed, true), (vec![], all));
        assert_eq!(parse_as(&["-a", "x", "-a"], true), (given(&["a"]), vec!["x".into(), "-a".into()]));
        assert_eq!(parse_as(&["-a", "--", "-a"], true), (given(&["a"]), vec!["-a".into()]));
    }

    #[test]
    fn complaints() {
        for (words, expected) in [
            (&["--x"][..], "unrecognized option '--x'"),
            (&["--x=y"], "unrecognized option '--x=y'"),
            (&["--allx"], "unrecognized option '--allx'"),
            (&["-x"], "invalid option -- 'x'"),
            (&["-="], "invalid option -- '='"),
            (&["-s"], "option requires an argument -- 's'"),
            (&["--siz"], "option '--size' requires an argument"),
            (&["--al="], "option '--all' doesn't allow an argument"),
            (&["--ou=5"], "option '--ou=5' is ambiguous; possibilities: '--out' '--out6'"),
            (&["--col"], "option '--col' is ambiguous; possibilities: '--colour' '--column'"),
            (
                &["--=1"],
                "option '--=1' is ambiguous; possibilities: '--all' '--size' '--out' '--out6' '--colour' '--color' '--column'",
            ),
        ] {
            assert_eq!(parse(words).0, [Err(expected.to_owned())], "{words:?}");
        }
        // A complaint does not lose what comes after it.
        let (options, others) = parse(&["-xa", "y"]);
        assert_eq!((&options[1..], others), (&given(&["a"])[..], vec!["y".to_owned()]));
    }

    /// Words that look like options, rather than noise.
    fn word() -> impl Strategy<Value = String> {
        prop_oneof![
            "-[asnx]{1,3}",
            "--(al|all|size|siz|out|out6|ou|col|x|)(=[a-]?)?",
            "[a-z]{0,2}",
            Just("--".to_owned()),
            Just("-".to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_made_up(words in proptest::collection::vec(word(), 0..8), posix: bool) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let (options, others) = parse_as(&words, posix);
            // Every value and every other word is one of the words, or the end of one, and in order.
            let mut at = 0;
            for other in &others {
                let found = words[at..].iter().position(|word| word == other);
                prop_assert!(found.is_some(), "{other} is not in {words:?}");
                at += found.unwrap() + 1;
            }
            for value in options.iter().flatten().filter_map(|(_, value)| value.as_ref()) {
                prop_assert!(words.iter().any(|word| word.ends_with(value.as_str())), "{value} of {words:?}");
            }
            let letters: usize = words.iter().map(|word| word.len().max(1)).sum();
            prop_assert!(options.len() + others.len() <= letters);
        }

        #[test]
        fn other_words_may_stand_anywhere(words in proptest::collection::vec("[a-z]{1,2}", 0..4), place in 0..5_usize) {
            let mut mixed: Vec<&str> = words.iter().map(String::as_str).collect();
            mixed.insert(place.min(mixed.len()), "-as7");
            prop_assert_eq!(parse(&mixed), (given(&["a", "s:7"]), words.clone()));
        }

        #[test]
        fn a_prefix_means_what_the_whole_means(cut in 1..4_usize, value in "[a-z=-]{0,4}") {
            let whole = parse(&[&format!("--size={value}")]);
            prop_assert_eq!(parse(&[&format!("--{}={value}", &"size"[..cut])]), whole.clone());
            prop_assert_eq!(parse(&[&format!("--{}", &"size"[..cut]), &value]), whole.clone());
            prop_assert_eq!(parse(&["-s", &value]), whole);
        }

        #[test]
        fn any_bytes_are_taken(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 0..6)) {
            let words = words.into_iter().map(OsString::from_vec);
            let mut getopt = Getopt::new(&NAMES, words, false);
            while getopt.next_option().is_some() {}
            getopt.others();
        }
    }
}
