use proptest::prelude::*;

use super::*;

/// How it ends, in short, and the warnings without their common start.
fn ends(words: &[&str]) -> (String, Vec<String>) {
    let mut warnings = Vec::new();
    let end = parse("prog", words.iter().map(OsString::from), false, &mut |line| warnings.push(line));
    let end = match end {
        End::Print(text) if text == table::usage("prog") => "help".to_owned(),
        End::Print(text) if text == table::version() => "version".to_owned(),
        End::Print(text) => panic!("{text}"),
        End::Usage(None) => "usage".to_owned(),
        End::Usage(Some(line)) => format!("{line} +usage"),
        End::Refused(error) => error.to_string(),
        End::Run(_) => "run".to_owned(),
    };
    let warnings = warnings.into_iter().map(|line| line.strip_prefix("WARNING: ").unwrap().to_owned());
    (end, warnings.collect())
}

fn options(words: &str) -> Options {
    match parse("prog", words.split(' ').map(OsString::from), false, &mut |_| ()) {
        End::Run(options) => *options,
        other => panic!("{words}: {other:?}"),
    }
}

#[test]
fn defaults() {
    let (plan, dhcp) = values::plan("10.0.2.0/24").unwrap();
    let expected = Options {
        program: "prog".into(),
        target: Target::Pid(7),
        tap_name: "tap0".into(),
        configure: false,
        exit_fd: None,
        ready_fd: None,
        mtu: 1500,
        ipv6: false,
        api_socket: None,
        plan,
        dhcp,
        disable_host_loopback: false,
        userns_path: None,
        sandbox: false,
        seccomp: false,
        outbound_v4: None,
        outbound_v6: None,
        disable_dns: false,
        mac: None,
    };
    assert_eq!(options("7 tap0"), expected);
}

#[test]
fn every_option_arrives() {
    let plain = options("7 tap0");
    let (plan, dhcp) = values::plan("10.1.0.0/16").unwrap();
    for (words, expected) in [
        ("-c", Options { configure: true, ..plain.clone() }),
        ("-e 4", Options { exit_fd: Some(4), ..plain.clone() }),
        ("--exit-fd=0", Options { exit_fd: Some(0), ..plain.clone() }),
        ("-r3", Options { ready_fd: Some(3), ..plain.clone() }),
        ("--ready-fd 3", Options { ready_fd: Some(3), ..plain.clone() }),
        ("-m 65520", Options { mtu: 65520, ..plain.clone() }),
        ("--mtu=1", Options { mtu: 1, ..plain.clone() }),
        ("--mt=+65521", Options { mtu: 65521, ..plain.clone() }),
        ("-m 9000 -m 1500", plain.clone()),
        ("-6", Options { ipv6: true, ..plain.clone() }),
        ("--enable-ipv6", Options { ipv6: true, ..plain.clone() }),
        ("-a /x/y", Options { api_socket: Some("/x/y".into()), ..plain.clone() }),
        ("--api-socket=", Options { api_socket: Some("".into()), ..plain.clone() }),
        ("--cidr=10.1.0.0/16", Options { plan, dhcp, ..plain.clone() }),
        ("--disable-host-loopback", Options { disable_host_loopback: true, ..plain.clone() }),
        ("--no-host-loopback", Options { disable_host_loopback: true, ..plain.clone() }),
        ("--netns-type=pid", plain.clone()),
        (
            "--userns-path=/proc/self/ns/user",
            Options { userns_path: Some("/proc/self/ns/user".into()), ..plain.clone() },
        ),
        ("--enable-sandbox", Options { sandbox: true, ..plain.clone() }),
        ("--create-sandbox", Options { sandbox: true, ..plain.clone() }),
        ("--enable-seccomp", Options { seccomp: true, ..plain.clone() }),
        ("--outbound-addr=192.0.2.1", Options { outbound_v4: Some([192, 0, 2, 1].into()), ..plain.clone() }),
        ("--outbound-addr=lo", Options { outbound_v4: Some([127, 0, 0, 1].into()), ..plain.clone() }),
        ("--outbound-addr6=2001:db8::1", Options { outbound_v6: "2001:db8::1".parse().ok(), ..plain.clone() }),
        ("--disable-dns", Options { disable_dns: true, ..plain.clone() }),
        (
            "--macaddress=2:3:4:5:6:7 --configure",
            Options { configure: true, mac: Some(crate::network::config::Mac([2, 3, 4, 5, 6, 7])), ..plain.clone() },
        ),
        ("--target-type=bess --target-type=netns", plain.clone()),
    ] {
        assert_eq!(options(&format!("{words} 7 tap0")), expected, "{words}");
        assert_eq!(options(&format!("7 {words} tap0")), expected, "{words}");
        assert_eq!(options(&format!("7 tap0 {words}")), expected, "{words}");
    }
}

#[test]
fn targets() {
    let target = |words: &str| {
        let options = options(words);
        (options.target, options.tap_name)
    };
    let path = |path: &str| Target::Path(path.into());
    assert_eq!(target("--netns-type=path /proc/self/ns/net t"), (path("/proc/self/ns/net"), "t".to_owned()));
    assert_eq!(target("--netns-type=whatever / t"), (path("/"), "t".to_owned()));
    assert_eq!(target("--netns-type=tapfd 5"), (Target::TapFd(5), String::new()));
    assert_eq!(target("--netns-type=tapfd 0"), (Target::TapFd(0), String::new()));
    assert_eq!(target("--target-type=bess /no/such"), (Target::Bess("/no/such".into()), String::new()));
    assert_eq!(target("-- 7 -t"), (Target::Pid(7), "-t".to_owned()));
    // Cut to what an interface's name holds, between characters.
    assert_eq!(target("7 averyveryverylongtapname").1, "averyveryverylo");
    assert_eq!(target("7 éééééééé").1, "ééééééé");
    assert_eq!(target("7 "), (Target::Pid(7), String::new()));
    assert_eq!(target("7 tap%d").1, "tap%d");
}

#[test]
fn refusals() {
    for (words, expected) in [
        ("", "usage"),
        ("7", "usage"),
        ("-c", "usage"),
        ("--target-type=bess", "usage"),
        ("--target-type=bess -c", "usage"),
        ("--netns-type=tapfd", "usage"),
        ("-x", "prog: invalid option -- 'x' +usage"),
        ("--nope -h", "prog: unrecognized option '--nope' +usage"),
        ("-h --nope", "help"),
        ("-vx", "version"),
        ("-m0 -h", "MTU must be a positive integer (< 65522) +usage"),
        ("-m 65522", "MTU must be a positive integer (< 65522) +usage"),
        ("-m -1", "MTU must be a positive integer (< 65522) +usage"),
        ("-m 4294968796", "MTU must be a positive integer (< 65522) +usage"),
        ("--mtu=", "MTU must be a positive integer (< 65522) +usage"),
        ("-e -1", "exit-fd must be a non-negative integer +usage"),
        ("-r x", "ready-fd must be a non-negative integer +usage"),
        ("-r 4294967296", "ready-fd must be a non-negative integer +usage"),
        ("--userns-path=/no/such", "userns path doesn't exist: /no/such +usage"),
        ("--macaddress=x abc", "--macaddr cannot be specified when --configure or -c is not specified +usage"),
        ("--macaddress=x -c abc", "PID must be a positive integer +usage"),
        ("--target-type=x", "--target-type must be either \"netns\" or \"bess\" +usage"),
        ("--target-type= abc", "--target-type must be either \"netns\" or \"bess\" +usage"),
        ("abc", "PID must be a positive integer +usage"),
        ("0 t", "PID must be a positive integer +usage"),
        ("-- -1 t", "PID must be a positive integer +usage"),
        ("12a t", "PID must be a positive integer +usage"),
        ("4294967297 t", "PID must be a positive integer +usage"),
        ("--netns-type=tapfd x", "TAPFD must a file descriptor +usage"),
        ("--netns-type=tapfd -- -1", "TAPFD must a file descriptor +usage"),
        (
            "--netns-type=path /no/such",
            "existing path expected when --netns-type=path: No such file or directory +usage",
        ),
        ("--netns-type=path /etc/passwd/x t", "existing path expected when --netns-type=path: Not a directory +usage"),
        ("--target-type=bess -c a b", "too many arguments +usage"),
        ("--target-type=bess -c --netns-type=pid a", "--configure conflicts with --target-type=bess +usage"),
        (
            "--target-type=bess --userns-path=/ --netns-type=pid a",
            "--netns-type conflicts with --target-type=bess +usage",
        ),
        ("--target-type=bess --userns-path=/ a", "--userns-path conflicts with --target-type=bess +usage"),
        ("--cidr=24 7 t", "invalid CIDR: 24"),
        ("--cidr=24 --outbound-addr=x 7 t", "invalid CIDR: 24"),
        ("--outbound-addr6=x --outbound-addr=y 7 t", "outbound-addr has to be valid ipv4 address or interface name."),
        ("--outbound-addr6=x -c --macaddress=x 7 t", "outbound-addr has to be valid ipv4 address or iterface name."),
        ("-c --macaddress=x 7 t", "\"x\" is an invalid MAC address."),
        ("--cidr=24 7", "usage"),
    ] {
        let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
        assert_eq!(ends(&words).0, expected, "{words:?}");
    }
    assert_eq!(ends(&["", "t"]).0, "PID must be a positive integer +usage");
}

#[test]
fn warnings_come_once_and_in_order() {
    let told = |words: &str| ends(&words.split(' ').collect::<Vec<_>>());
    let (end, warnings) = told("--enable-seccomp -6 --no-host-loopback --create-sandbox -66 --no-host 7 t x y");
    assert_eq!(end, "run");
    let deprecated = "is deprecated and will be removed in future releases, please use";
    assert_eq!(
        warnings,
        [
            "Support for seccomp is experimental".to_owned(),
            "Support for IPv6 is experimental".to_owned(),
            format!("--no-host-loopback {deprecated} --disable-host-loopback instead."),
            format!("--create-sandbox {deprecated} --enable-sandbox instead."),
            "too many arguments".to_owned(),
        ]
    );
    let outbound = ["Support for --outbound-addr is experimental", "Support for --outbound-addr6 is experimental"];
    assert_eq!(told("--outbound-addr=x --outbound-addr6=y -h").1, outbound);
    assert_eq!(told("--netns-type=tapfd 5 tap0").1, ["too many arguments"]);
    assert_eq!(told("abc t x").1, ["too many arguments"]);
    assert_eq!(told("--target-type=bess /x --cidr=z").1, ["BESS mode is experimental"]);
    assert_eq!(told("--target-type=bess /x y").1, [""; 0]);
    assert_eq!(told("--enable-sandbox --disable-host-loopback -c 7 t").1, [""; 0]);
}

/// What podman and RootlessKit pass.
#[test]
fn command_lines_of_clients() {
    let podman = options(
        "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --cidr=192.168.0.0/24 --enable-ipv6 -c \
         -r 3 -e 4 --api-socket /tmp/s --netns-type=path /proc/self/ns/net tap0",
    );
    assert_eq!((podman.mtu, podman.ready_fd, podman.exit_fd), (65520, Some(3), Some(4)));
    assert_eq!(podman.target, Target::Path("/proc/self/ns/net".into()));
    let rootlesskit =
        options("--mtu 65520 -r 3 --disable-host-loopback --userns-path=/proc/1 --netns-type=path / tap0");
    assert_eq!((rootlesskit.configure, rootlesskit.tap_name.as_str()), (false, "tap0"));
}

proptest! {
    #[test]
    fn what_runs_is_within_bounds(
        words in proptest::collection::vec(
            prop_oneof![
                "-[ce6rm][0-9]{0,5}",
                "--(mtu|exit-fd|cidr|netns-type|macaddress|target-type|outbound-addr6?)=([a-z0-9.:/]{0,8}|tapfd|path|bess)",
                "[0-9]{1,3}",
                "\\PC{0,9}",
            ],
            0..7,
        )
    ) {
        let words = words.iter().map(OsString::from);
        if let End::Run(options) = parse("prog", words, false, &mut |_| ()) {
            prop_assert!((1..=MAX_MTU).contains(&options.mtu) && options.tap_name.len() <= MAX_NAME);
            prop_assert!(options.exit_fd.is_none_or(|fd| fd >= 0) && options.ready_fd.is_none_or(|fd| fd >= 0));
            prop_assert!(options.mac.is_none() || options.configure);
            prop_assert!(!matches!(options.target, Target::Pid(..=0) | Target::TapFd(..=-1)));
        }
    }
}
