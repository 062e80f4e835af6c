//! The command line of slirp4netns, line by line beside the real program where it is installed.
//!
//! Each list of arguments ends before any namespace is entered: by itself, or because the PID is nobody's. Compared are
//! exit code, stderr with the program's name made one, and which parts of stdout there are (warnings, usage, version);
//! help and version have words of their own. Beside the lists that somebody thought of, there are some that nobody did.
//! Debian's slirp4netns is 1.2.0: where 1.3 differs the list says so.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::sample;
use proptest::test_runner::{Config, TestRunner};

use crate::stage::{Ended, Stage};

/// Above the largest number of a process (4194304, PID_MAX_LIMIT).
const NOBODY: &str = "4194999";

/// Parts of stdout, one letter each: U usage, V version, W and the warning.
fn parts(stdout: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for line in stdout.lines() {
        let part = match line.split_whitespace().next() {
            Some("Usage:") => "U".to_owned(),
            Some("WARNING:") => format!("W {line}"),
            Some("slirp4netns") if line.contains(" version ") => "V".to_owned(),
            _ => continue,
        };
        // The real one says some of it twice.
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts
}

/// What both are compared by.
fn outcome(ended: &Ended) -> (i32, String, Vec<String>) {
    // A newline more at the end is no difference.
    (ended.code, ended.stderr.trim_end().to_owned(), parts(&ended.stdout))
}

struct Programs {
    stage: Stage,
    real: bool,
}

impl Programs {
    fn new() -> Self {
        let real = Path::new("/usr/bin/slirp4netns").exists();
        if !real {
            assert!(std::env::var_os("TAPWAY_NO_SKIP").is_none(), "slirp4netns is not installed");
            eprintln!("SKIPPED: the comparison with slirp4netns, which is not installed");
        }
        Self { stage: Stage::new(), real }
    }

    fn run(mut command: Command, args: &[&str], environment: &[(&str, &str)]) -> Ended {
        // The same name for both: it is in the messages.
        command.arg0("slirp4netns").args(args).envs(environment.iter().copied());
        Ended::of(&mut command)
    }

    fn ours(&self, args: &[&str], environment: &[(&str, &str)]) -> Ended {
        Self::run(self.stage.tapway(&[]), args, environment)
    }

    /// The real one's; None if it is not installed.
    fn theirs(&self, args: &[&str], environment: &[(&str, &str)]) -> Option<Ended> {
        self.real.then(|| Self::run(self.stage.as_user("/usr/bin/slirp4netns"), args, environment))
    }
}

/// Splits at spaces; `''` is an empty word, `PID` is nobody's.
fn words(line: &str) -> Vec<&str> {
    let word = |word| match word {
        "''" => "",
        "PID" => NOBODY,
        word => word,
    };
    line.split(' ').filter(|word| !word.is_empty()).map(word).collect()
}

#[test]
fn side_by_side() {
    let programs = Programs::new();
    for line in [
        // The grammar.
        "",
        "--nope",
        "--nope=5 PID t",
        "--mtux=5",
        "-1",
        "-x",
        "-cx",
        "-c6z",
        "-W foo",
        "-:",
        "--",
        "-m",
        "-mm",
        "-cm",
        "-e",
        "-a",
        "--mtu",
        "--mt",
        "--outbound-addr",
        "--cidr",
        "--m=5",
        "--m",
        "--e",
        "--enable",
        "--enable-s",
        "--disable=1",
        "--o=5",
        "--=x",
        "--n",
        "--c",
        "--configure=1",
        "--conf=1",
        "--enable-ipv6=",
        "--help=1",
        "--disable-host-loopback=yes",
        "PID t --nope",
        "PID -- t --nope --cidr=1",
        "PID --cidr=24 t",
        "PID t --cidr 24",
        "--cidr 24 -c PID -m1500 t",
        "-c6m1500 --ci=24 PID t",
        "--mtu=9000 -m x",
        // Help and version, at once and left to right.
        "-h",
        "--help",
        "--he",
        "-v",
        "--version",
        "--ver",
        "-hx",
        "-vx",
        "-xh",
        "-h --nope",
        "--nope -h",
        "-m0 -h",
        "-h -m0",
        "-6 -h",
        "-6 -v",
        "abc -v",
        "-ch",
        "--macaddress=x -v",
        // Numbers.
        "-m 0 PID t",
        "-m 65522 PID t",
        "-m -5 PID t",
        "-m 0x500 PID t",
        "-m 1500x PID t",
        "-m99999999999999999999 PID t",
        "--mtu= PID t",
        "-m +1500 --cidr=1 PID t",
        "-m 65521 --cidr=1 PID t",
        "-m 1 --cidr=1 PID t",
        "-e -1 PID t",
        "-e x PID t",
        "-e 3x PID t",
        "--exit-fd= --cidr=1 PID t",
        "-e -0 --cidr=1 PID t",
        "-r -1 PID t",
        "-r x PID t",
        "--ready-fd=99999999999999999999 PID t",
        "-r -x PID t",
        "-r0x10 PID t",
        // Target and interface.
        "PID",
        "-c PID",
        "0 t",
        "12a t",
        "abc t",
        "abc t x",
        "'' t",
        "-- -1 t",
        "-1 t",
        "--netns-type=path /no/such t",
        "--netns-type=path '' t",
        "--netns-type=path /etc/passwd/x t",
        "--netns-type=path /no/such t x",
        "--netns-type=PID PID t",
        "--netns-type= /no/such t",
        "--netns-type=path --netns-type=pid abc t",
        "--netns-type=path / t --cidr=1",
        "--userns-path=/no/such PID t",
        "--userns-path= PID t",
        "--userns-path=/no/such -x",
        "-x --userns-path=/no/such",
        "--userns-path=/ --cidr=1 PID t",
        "PID t x y --cidr=1",
        "PID t x",
        // What warns.
        "-6 --cidr=1 PID t",
        "-6 -6 --cidr=1 PID t",
        "--enable-seccomp --cidr=1 PID t",
        "--enable-sandbox --cidr=1 PID t",
        "--no-host-loopback --create-sandbox --cidr=1 PID t",
        "--no-host --disable-dns abc t",
        "--outbound-addr=127.0.0.1 --outbound-addr6=::1 --cidr=1 PID t",
        "--outbound-addr= -x",
        // Contents.
        "--cidr=24 PID t",
        "--cidr=foo PID t",
        "--cidr= PID t",
        "--cidr=10.0.2.0 PID t",
        "--cidr=10.0.2.0/024 PID t",
        "--cidr=10.0.2/24 PID t",
        "--cidr=1000.0.2.0/24 PID t",
        "--cidr=fd00::/64 PID t",
        "--cidr=256.0.2.0/24 PID t",
        "--cidr=010.0.2.0/24 PID t",
        "--cidr=256.0.2.0/30 PID t",
        "--cidr=10.0.2.0/0 PID t",
        "--cidr=10.0.2.0/00 PID t",
        "--cidr=10.0.2.0/26 PID t",
        "--cidr=10.0.2.100/26 PID t",
        "--cidr=10.0.2.0/99 PID t",
        "--cidr=10.0.2.100/24 PID t",
        "--cidr=10.0.2.0/01 PID t",
        "--outbound-addr=nosuchif PID t",
        "--outbound-addr= PID t",
        "--outbound-addr=fd00::1 PID t",
        "--outbound-addr=127.1 PID t",
        "--outbound-addr6=nosuchif PID t",
        "--outbound-addr6=127.0.0.1 PID t",
        "--outbound-addr6=x --outbound-addr=y PID t",
        "--outbound-addr=x --cidr=1 PID t",
        "--outbound-addr6=x -c --macaddress=x PID t",
        "--macaddress=2:3:4:5:6:7 PID t",
        "--macaddress=x abc",
        "--macaddress=x --target-type=x",
        "-c --macaddress=x PID t",
        "-c --macaddress= PID t",
        "--macaddress=: -c PID t",
        "-c --macaddress=2:3:4:5:6:7: PID t",
        "-c --macaddress=2:3:4:5:6:7:8 PID t",
        "-c --macaddress=2::4 PID t",
        "-c --macaddress=100:3:4:5:6:7 PID t",
        "-c --macaddress=-1 PID t",
        "-c --macaddress=x --outbound-addr=lo PID t",
        "-c --macaddress=x --cidr=1 PID t",
        // BESS.
        "--target-type=x",
        "--target-type= PID t",
        "--target-type=BESS /x",
        "--target-type=bess",
        "--target-type=bess -c",
        "--target-type=bess a b",
        "--target-type=bess -c a b",
        "--target-type=bess -c --netns-type=pid a",
        "--target-type=bess --netns-type=pid a",
        "--target-type=bess --userns-path=/ a",
        "--target-type=bess --userns-path=/ --netns-type=path a",
        "--target-type=bess --macaddress=x a",
        "--target-type=bess --cidr=1 a",
        "--target-type=bess --cidr=1 a b",
        "--target-type=bess --target-type=netns a b",
        "--target bess --cidr=1 a",
    ] {
        let args = words(line);
        let ours = programs.ours(&args, &[]);
        if let Some(theirs) = programs.theirs(&args, &[]) {
            assert_eq!(outcome(&ours), outcome(&theirs), "tapway, then slirp4netns: {line}\n{ours:?}\n{theirs:?}");
        }
        // Whatever it was, an end; and usage is for stdout.
        assert!(ours.code <= 1 && !ours.stderr.contains("Usage"), "{line}: {ours:?}");
        assert!(ours.code == 1 || ours.stderr.is_empty(), "{line}: {ours:?}");
    }
}

#[test]
fn side_by_side_as_posix_has_it() {
    let programs = Programs::new();
    let posix = &[("POSIXLY_CORRECT", "")][..];
    for line in ["--cidr=1 PID t --nope", "PID --nope", "abc t -x", "-x PID t", "--cidr=1 -- PID t -x", "abc t -h"] {
        let args = words(line);
        let ours = programs.ours(&args, posix);
        if let Some(theirs) = programs.theirs(&args, posix) {
            assert_eq!(outcome(&ours), outcome(&theirs), "tapway, then slirp4netns: {line}\n{ours:?}\n{theirs:?}");
        }
        assert_eq!(ours.code, 1, "{line}: {ours:?}");
    }
}

/// Words in which options, values and mistakes meet. None of them leads into a namespace or waits for a peer.
fn word() -> impl Strategy<Value = String> {
    let value = "(|0|-1|[0-9]{1,5}|x| 7|[+]8|0x9|path|pid|netns|lo|::1|/nope|10[.]1[.][02][.]0/(8|16|24|26)|(0x)?[0-9a-f]{1,2}(:[0-9a-f]{1,2}){0,6}|02:-?[+]?0: 3)";
    prop_oneof![
        4 => (sample::select(&LONG[..]), 1..30_usize, proptest::option::of(value)).prop_map(|(name, cut, value)| {
            let name = &name[..cut.min(name.len())];
            value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}"))
        }),
        2 => ("-[c6ermahvxz]{1,2}", value).prop_map(|(letters, value)| letters + &value),
        1 => "-[c6]{1,3}",
        2 => sample::select(&[NOBODY, "t", "abc", "-", "", "--"][..]).prop_map(str::to_owned),
    ]
}

const LONG: [&str; 21] = [
    "configure",
    "exit-fd",
    "ready-fd",
    "mtu",
    "cidr",
    "disable-host-loopback",
    "no-host-loopback",
    "netns-type",
    "userns-path",
    "api-socket",
    "enable-ipv6",
    "enable-sandbox",
    "create-sandbox",
    "enable-seccomp",
    "help",
    "version",
    "outbound-addr",
    "outbound-addr6",
    "disable-dns",
    "macaddress",
    "target-type",
];

#[test]
fn side_by_side_at_random() {
    let programs = Programs::new();
    let lists = (proptest::collection::vec(word(), 0..6), any::<bool>(), any::<bool>());
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let tried = runner.run(&lists, |(words, target_first, posix)| {
        let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
        let at = if target_first { 0 } else { args.len() };
        args.splice(at..at, [NOBODY, "t"]);
        let environment: &[(&str, &str)] = if posix { &[("POSIXLY_CORRECT", "1")] } else { &[] };
        let ours = programs.ours(&args, environment);
        prop_assert!(ours.code <= 1, "{:?}: {:?}", args, ours);
        let Some(theirs) = programs.theirs(&args, environment) else { return Ok(()) };
        // 1.2.0 wants two words before it looks at the first.
        let early = theirs.stderr.is_empty()
            && ["PID must", "existing path"].iter().any(|start| ours.stderr.starts_with(start));
        if !early {
            prop_assert_eq!(outcome(&ours), outcome(&theirs), "tapway, then slirp4netns: {:?}", args);
        }
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}

/// What 1.2.0 knows otherwise or not at all, or what is better here.
#[test]
fn where_we_differ_from_debian() {
    let programs = Programs::new();
    for (line, stderr, stdout) in [
        ("-", "PID must be a positive integer", &["U"][..]),
        ("abc", "PID must be a positive integer", &["U"]),
        (
            "--netns-type=path /no/such",
            "existing path expected when --netns-type=path: No such file or directory",
            &["U"],
        ),
        ("--netns-type=tapfd", "", &["U"]),
        ("--netns-type=tapfd x", "TAPFD must a file descriptor", &["U"]),
        ("--netns-type=tapfd x t", "TAPFD must a file descriptor", &["W WARNING: too many arguments", "U"]),
        ("--netns-type=tapfd -- -1", "TAPFD must a file descriptor", &["U"]),
        ("4294967297 t", "PID must be a positive integer", &["U"]),
        ("-e 4294967296 PID t", "exit-fd must be a non-negative integer", &["U"]),
    ] {
        let ours = programs.ours(&words(line), &[]);
        let expected = (1, stderr.to_owned(), stdout.iter().map(|&part| part.to_owned()).collect());
        assert_eq!(outcome(&ours), expected, "{line}: {ours:?}");
    }
    let ours = programs.ours(&["--cidr=\x1b[31m\n", NOBODY, "t"], &[]);
    assert_eq!(ours.stderr, "invalid CIDR: \\u{1b}[31m\\n\n");
}

#[test]
fn both_ways_to_call_it() {
    let stage = Stage::new();
    let named = Programs::new().ours(&["--help"], &[]);
    let sub = stage.run(&["slirp4netns", "--help"]);
    assert_eq!((named.code, sub.code, sub.stderr.as_str()), (0, 0, ""));
    assert!(named.stdout.starts_with("Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]\n"), "{named:?}");
    let (program, _) = sub.stdout.strip_prefix("Usage: ").unwrap().split_once(" [OPTION]").unwrap();
    assert!(program.ends_with("tapway slirp4netns"), "{program}");
    let wrong = stage.run(&["slirp4netns", "--nope"]);
    assert!(wrong.stderr.ends_with("/tapway slirp4netns: unrecognized option '--nope'\n"), "{wrong:?}");
    // A link with that name.
    let link = stage.dir().join("slirp4netns");
    std::os::unix::fs::symlink(stage.tapway(&[]).get_program(), &link).unwrap();
    let version = Ended::of(stage.as_user(&link).arg("--version"));
    assert!(version.ok().starts_with("slirp4netns version 1.3.2\ncommit: tapway "), "{version:?}");
    // clap knows of it, too.
    assert!(stage.run(&["--help"]).ok().contains("slirp4netns"));
    assert_eq!(stage.run(&["--", "slirp4netns", "7", "tap0"]).code, 2);
}

/// What podman, RootlessKit and their scripts look for before they use it.
#[test]
fn what_clients_probe() {
    let programs = Programs::new();
    let help = programs.ours(&["--help"], &[]);
    for option in [
        "--disable-host-loopback",
        "--mtu",
        "--enable-sandbox",
        "--enable-seccomp",
        "--cidr",
        "--outbound-addr",
        "--enable-ipv6",
        "--netns-type",
        "--api-socket",
    ] {
        let mut grep = Command::new("grep");
        grep.args(["-qw", "--", option]).stdin(Stdio::piped());
        let mut grep = grep.spawn().unwrap();
        std::io::Write::write_all(&mut grep.stdin.take().unwrap(), help.ok().as_bytes()).unwrap();
        assert!(grep.wait().unwrap().success(), "{option}");
    }
    // The real one's options are all there.
    if let Some(theirs) = programs.theirs(&["--help"], &[]) {
        for word in theirs.ok().split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
            assert!(!word.starts_with("--") || help.ok().contains(word), "{word}");
        }
    }
    let version = programs.ours(&["-v"], &[]);
    assert_eq!(version.ok().lines().filter(|line| line.contains("version")).count(), 1);
    let max = version.ok().lines().find_map(|line| line.strip_prefix("SLIRP_CONFIG_VERSION_MAX: ")).unwrap();
    assert!(max.parse::<u32>().unwrap() >= 3);
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let stage = Stage::new();
    for (args, code) in [("--help", 0), ("--version", 0), ("--nope", 1)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = stage.tapway(&["slirp4netns", args]);
        command.stdout(writer.try_clone().unwrap()).stderr(writer);
        let status = command.status().unwrap();
        assert_eq!(status.code(), Some(code), "{args}: {status}");
    }
}
