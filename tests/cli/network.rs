//! `tapway network`: what it prints, refuses and leaves behind, word for word.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::stage::{Ended, Stage};

fn network(stage: &Stage, words: &[&str]) -> Ended {
    let all: Vec<&str> = ["network"].iter().chain(words).copied().collect();
    stage.run(&all)
}

/// What a refusal says after "tapway: ", line by line.
fn refused(ended: &Ended, code: i32) -> String {
    assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{ended:?}");
    ended.stderr.strip_prefix("tapway: ").unwrap().strip_suffix('\n').unwrap().to_owned()
}

fn definitions(stage: &Stage) -> PathBuf {
    stage.dir().join(".local/state/tapway/networks")
}

fn inspect(stage: &Stage, name: &str) -> Value {
    serde_json::from_str(network(stage, &["inspect", name]).ok()).unwrap()
}

/// Somebody who holds a lease as a monitor does: a file with these contents under an exclusive lock.
struct Holder(Child);

impl Holder {
    fn new(stage: &Stage, network: &Value, number: u8, name: &str) -> Self {
        let short = &network["Id"].as_str().unwrap()[..12];
        let subnet = network["IPAM"]["Config"][0]["Subnet"].as_str().unwrap();
        let address = format!("{}.{number}", subnet.rsplit_once('.').unwrap().0);
        let dir = stage.dir().join("tapway/networks").join(short).join("leases");
        let lease = json!({ "sandbox_id": format!("0123456789{number:02x}"), "sandbox_name": name,
            "endpoint_id": format!("{number:02x}").repeat(32), "pid": 1, "mac": format!("02:42:00:00:00:{number:02x}"), "v4": address,
            "interface": "eth0" });
        let script = "import fcntl, os, sys\nos.makedirs(sys.argv[1], 0o700, exist_ok=True)\n\
            f = open(sys.argv[1] + '/' + sys.argv[2], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\n\
            f.write(sys.argv[3])\nf.flush()\nprint('held', flush=True)\nsys.stdin.read()";
        let mut command = stage.as_user("python3");
        command.args(["-c", script]).arg(dir).args([&address, &lease.to_string()]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whatever the host's routes are, explicit subnets are what is asked for.
fn create(stage: &Stage, name: &str, subnet: &str) -> String {
    network(stage, &["create", "--subnet", subnet, name]).ok().trim().to_owned()
}

#[test]
fn made_listed_shown_and_removed() {
    let stage = Stage::new();
    let id = create(&stage, "foo", "10.9.0.0/24");
    assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    let short = &id[..12];
    let listed = network(&stage, &["ls"]);
    let lines: Vec<&str> = listed.ok().lines().collect();
    assert_eq!(lines[0], "NETWORK ID     NAME      DRIVER    SCOPE");
    assert!(lines[1].ends_with("   bridge    bridge    local"), "{lines:?}");
    assert_eq!(lines[2], format!("{short}   foo       bridge    local"));
    assert!(lines[3].ends_with("   host      host      local") && lines[4].ends_with("   none      null      local"));
    assert_eq!(network(&stage, &["ls", "-q", "--filter", "type=custom"]).ok(), format!("{short}\n"));
    assert_eq!(network(&stage, &["ls", "-q", "--no-trunc", "-f", "name=foo"]).ok(), format!("{id}\n"));
    let shown = inspect(&stage, short);
    assert_eq!(
        shown,
        json!([{ "Name": "foo", "Id": id, "Created": shown[0]["Created"], "Scope": "local", "Driver": "bridge",
            "EnableIPv4": true, "EnableIPv6": false,
            "IPAM": { "Driver": "default", "Options": {},
                "Config": [{ "Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1" }] },
            "Internal": false, "Attachable": false, "Ingress": false, "ConfigFrom": { "Network": "" },
            "ConfigOnly": false, "Containers": {}, "Options": {}, "Labels": {},
            "Status": { "IPAM": { "Subnets": { "10.9.0.0/24": { "IPsInUse": 3, "DynamicIPsAvailable": 253 } } } } }])
    );
    let text = network(&stage, &["inspect", "foo"]);
    let order = [
        "[\n    {\n        \"Name\"",
        "\"Id\"",
        "\"Created\"",
        "\"IPAM\"",
        "\"Containers\"",
        "\"Labels\"",
        "\"Status\"",
    ];
    let places: Vec<usize> = order.iter().map(|part| text.ok().find(part).unwrap()).collect();
    assert!(places.is_sorted(), "the fields have Docker's order");
    assert_eq!(network(&stage, &["rm", "foo"]).ok(), "foo\n");
    assert_eq!(network(&stage, &["ls", "-q", "--filter", "type=custom"]).ok(), "");
    let left: Vec<_> = fs::read_dir(definitions(&stage)).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn everything_that_can_be_said() {
    let stage = Stage::new();
    let words = "create --subnet 10.9.0.0/16 --subnet fd00:9::/64 --ip-range 10.9.4.0/24 --gateway 10.9.0.254 \
        --aux-address printer=10.9.4.0 --internal --ipv6 --attachable --label a=b --label c \
        -o com.docker.network.bridge.enable_icc=false -o com.docker.network.driver.mtu=1500 --json foo";
    let made = network(&stage, &words.split_whitespace().collect::<Vec<_>>());
    let made: Value = serde_json::from_str(made.ok()).unwrap();
    assert_eq!((&made["name"], &made["ipam"][0]["gateway"]), (&json!("foo"), &json!("10.9.0.254")));
    let shown = &inspect(&stage, "foo")[0];
    assert_eq!(
        shown["IPAM"]["Config"],
        json!([{ "Subnet": "10.9.0.0/16", "IPRange": "10.9.4.0/24", "Gateway": "10.9.0.254",
            "AuxiliaryAddresses": { "printer": "10.9.4.0" } },
            { "Subnet": "fd00:9::/64", "Gateway": "fd00:9::1" }])
    );
    assert_eq!(shown["Status"]["IPAM"]["Subnets"]["10.9.0.0/16"], json!({ "IPsInUse": 4, "DynamicIPsAvailable": 255 }));
    assert_eq!(
        (&shown["Internal"], &shown["EnableIPv6"], &shown["Attachable"]),
        (&json!(true), &json!(true), &json!(true))
    );
    assert_eq!(shown["Labels"], json!({ "a": "b", "c": "" }));
    let template =
        "{{.Name}} {{range .IPAM.Config}}{{.Subnet}},{{end}} {{index .Options \"com.docker.network.driver.mtu\"}}";
    assert_eq!(network(&stage, &["inspect", "-f", template, "foo"]).ok(), "foo 10.9.0.0/16,fd00:9::/64, 1500\n");
    let table =
        network(&stage, &["ls", "--filter", "label=a=b", "--format", "table {{.Name}}\\t{{.IPv6}}\\t{{.Labels}}"]);
    assert_eq!(table.ok(), "NAME      IPV6      LABELS\nfoo       true      a=b,c=\n");
    let label = network(&stage, &["ls", "--filter", "name=foo", "--format", "{{.Label \"a\"}}-{{.Label \"none\"}}"]);
    assert_eq!(label.ok(), "b-\n");
    let row: Value =
        serde_json::from_str(network(&stage, &["ls", "--format", "json", "--filter", "name=foo"]).ok()).unwrap();
    assert_eq!(
        (&row["Internal"], &row["Scope"], &row["ID"]),
        (&json!("true"), &json!("local"), &made["id"].as_str().unwrap()[..12].into())
    );
    let listed: Value = serde_json::from_str(network(&stage, &["ls", "--json", "-f", "name=foo"]).ok()).unwrap();
    assert_eq!((&listed["networks"][0]["internal"], &listed["broken"]), (&json!(true), &json!([])));
}

#[test]
fn refusals_word_for_word() {
    let stage = Stage::new();
    create(&stage, "foo", "10.9.0.0/24");
    for (words, code, text) in [
        ("create foo", 1, "network with name foo already exists"),
        ("create bridge", 2, "operation is not permitted on predefined bridge network "),
        ("create host", 2, "operation is not permitted on predefined host network "),
        (
            "create --subnet 10.9.0.128/25 bar",
            1,
            "invalid pool request: Pool overlaps with other one on this address space",
        ),
        (
            "create --subnet 172.17.0.0/24 bar",
            1,
            "invalid pool request: Pool overlaps with other one on this address space",
        ),
        (
            "create --subnet 10.0.0.5/24 bar",
            2,
            "invalid network config:\ninvalid subnet 10.0.0.5/24: it should be 10.0.0.0/24",
        ),
        (
            "create --subnet 10.0.0.0/24 --ip-range 10.0.0.0/16 bar",
            2,
            "invalid network config:\ninvalid ip-range 10.0.0.0/16: CIDR block is bigger than its parent subnet 10.0.0.0/24",
        ),
        ("create --subnet 10.0.0.0/24 --subnet 10.1.0.0/24 bar", 2, "bridge driver doesn't support multiple subnets"),
        ("create --gateway 10.0.0.1 bar", 2, "every ip-range or gateway must have a corresponding subnet"),
        ("create --ip-range 10.0.0.0/24 bar", 2, "every ip-range or gateway must have a corresponding subnet"),
        ("create --subnet 10.0.0.0/24 --gateway 10.0.1.1 bar", 2, "no matching subnet for gateway 10.0.1.1"),
        ("create --subnet 0.0.0.0/8 bar", 1, "all predefined address pools have been fully subnetted"),
        (
            "create -o com.docker.network.bridge.enable_icc=maybe bar",
            2,
            "failed to parse com.docker.network.bridge.enable_icc value: maybe (strconv.ParseBool: parsing \"maybe\": invalid syntax)",
        ),
        ("create -d overlay bar", 2, "--driver 'overlay' is not supported: a network is of this host alone"),
        ("rm bridge", 1, "bridge is a pre-defined network and cannot be removed"),
        ("rm none", 1, "none is a pre-defined network and cannot be removed"),
        ("rm bar", 1, "network bar not found"),
        ("ls --filter x=y", 2, "invalid filter 'x'; there are driver, id, label, name, scope, type, dangling"),
        (
            "ls --filter dangling=x",
            2,
            "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" (or \"0\")",
        ),
        ("prune -f --filter name=x", 2, "invalid filter 'name'; there are until, label, label!"),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        assert_eq!(refused(&network(&stage, &words), code), text, "{words:?}");
    }
    // Docker's driver complains where a range is given; ids are part of the text.
    let id = inspect(&stage, "foo")[0]["Id"].as_str().unwrap().to_owned();
    let text = refused(&network(&stage, &["create", "--subnet", "10.9.0.0/16", "--ip-range", "10.9.1.0/24", "bar"]), 1);
    let (new, rest) = text.strip_prefix("cannot create network ").unwrap().split_at(64);
    let expected =
        format!(" (br-{}): conflicts with network {id} (br-{}): networks have overlapping IPv4", &new[..12], &id[..12]);
    assert_eq!(rest, expected);
    // inspect goes on, and what it prints is JSON all the same.
    let ended = network(&stage, &["inspect", "nope", "foo"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (1, "tapway: network nope not found\n"));
    assert_eq!(serde_json::from_str::<Value>(&ended.stdout).unwrap()[0]["Name"], "foo");
    let ended = network(&stage, &["inspect", "nope"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (1, "[]\n"));
    // So does rm.
    let ended = network(&stage, &["rm", "nope", "foo", "bridge"]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.lines().count()), (1, "foo\n", 2));
    assert_eq!(network(&stage, &["rm", "-f", "nope"]).ok(), "");
    assert_eq!(network(&stage, &["rm", "-f", "bridge"]).code, 1);
    // What was typed does not drive the terminal.
    let ended = network(&stage, &["create", "--driver", "a\x1b[31m\nb", "bar"]);
    assert_eq!(refused(&ended, 2).lines().count(), 2);
    assert!(!ended.stderr.contains('\x1b'), "{ended:?}");
    let help = refused(&network(&stage, &["create", "--frob", "bar"]), 2);
    assert!(help.ends_with("see 'tapway network create --help'"), "{help}");
}

#[test]
fn ambiguous_ids() {
    let stage = Stage::new();
    let mut ids = Vec::new();
    // By the pigeonhole: of more than sixteen ids two begin with the same digit.
    for n in 0..17 {
        ids.push(create(&stage, &format!("net{n}"), &format!("10.{n}.0.0/24")));
    }
    ids.extend(["bridge", "host", "none"].map(|name| inspect(&stage, name)[0]["Id"].as_str().unwrap().to_owned()));
    let digit = ids.iter().map(|id| &id[..1]).find(|d| ids.iter().filter(|id| id.starts_with(d)).count() > 1).unwrap();
    let count = ids.iter().filter(|id| id.starts_with(digit)).count();
    let expected = format!("network {digit} is ambiguous ({count} matches found based on ID prefix)");
    assert_eq!(refused(&network(&stage, &["rm", digit]), 1), expected);
    // An exact name counts first.
    create(&stage, digit, "10.99.0.0/24");
    assert_eq!(network(&stage, &["rm", digit]).ok(), format!("{digit}\n"));
}

#[test]
fn who_is_in_it() {
    let stage = Stage::new();
    create(&stage, "foo", "10.9.0.0/24");
    let foo = inspect(&stage, "foo")[0].clone();
    let (c1, c2) = (Holder::new(&stage, &foo, 2, "c1"), Holder::new(&stage, &foo, 3, "c2"));
    let shown = &inspect(&stage, "foo")[0];
    assert_eq!(
        shown["Containers"],
        json!({ "012345678902": { "Name": "c1", "EndpointID": "02".repeat(32), "MacAddress": "02:42:00:00:00:02",
                "IPv4Address": "10.9.0.2/24", "IPv6Address": "" },
            "012345678903": { "Name": "c2", "EndpointID": "03".repeat(32), "MacAddress": "02:42:00:00:00:03",
                "IPv4Address": "10.9.0.3/24", "IPv6Address": "" } })
    );
    assert_eq!(shown["Status"]["IPAM"]["Subnets"]["10.9.0.0/24"], json!({ "IPsInUse": 5, "DynamicIPsAvailable": 251 }));
    let names = network(&stage, &["inspect", "-f", "{{range .Containers}}{{.Name}} {{end}}", "foo"]);
    assert_eq!(names.ok(), "c1 c2 \n");
    assert_eq!(
        refused(&network(&stage, &["rm", "foo"]), 1),
        "error while removing network: network foo has active endpoints \
         (name:\"c1\" id:\"020202020202\", name:\"c2\" id:\"030303030303\")"
    );
    assert_eq!(network(&stage, &["prune", "-f"]).ok(), "");
    assert_eq!(network(&stage, &["ls", "-q", "-f", "dangling=true"]).ok(), "");
    // One that is stopped is there, one that was killed is not.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(c2.0.id().cast_signed()), nix::sys::signal::Signal::SIGSTOP)
        .unwrap();
    c1.kill();
    let shown = &inspect(&stage, "foo")[0];
    assert_eq!(shown["Containers"].as_object().unwrap().keys().collect::<Vec<_>>(), ["012345678903"]);
    assert!(refused(&network(&stage, &["rm", "foo"]), 1).ends_with("(name:\"c2\" id:\"030303030303\")"));
    c2.kill();
    assert_eq!(network(&stage, &["rm", "foo"]).ok(), "foo\n");
    let left: Vec<_> = fs::read_dir(stage.dir().join("tapway/networks")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn networks_survive_a_reboot() {
    let stage = Stage::new();
    let id = create(&stage, "foo", "10.9.0.0/24");
    let holder = Holder::new(&stage, &inspect(&stage, "foo")[0], 2, "c1");
    holder.kill();
    fs::remove_dir_all(stage.dir().join("tapway")).unwrap();
    assert_eq!(inspect(&stage, "foo")[0]["Id"], id.as_str());
    assert_eq!(inspect(&stage, "foo")[0]["Containers"], json!({}));
    assert_eq!(network(&stage, &["rm", &id]).ok(), format!("{id}\n"));
}

#[test]
fn prune_asks() {
    let stage = Stage::new();
    let question = "WARNING! This will remove all custom networks not used by at least one container.\n\
        Are you sure you want to continue? [y/N] ";
    for (answer, deleted) in [("", false), ("n\n", false), ("yes\n", false), ("y\n", true), ("Y", true)] {
        create(&stage, "foo", "10.9.0.0/24");
        create(&stage, "kept", "10.8.0.0/24");
        let holder = Holder::new(&stage, &inspect(&stage, "kept")[0], 2, "c1");
        let mut command = stage.tapway(&["network", "prune"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let expected = if deleted { format!("{question}Deleted Networks:\nfoo\n\n") } else { question.to_owned() };
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected, "{answer:?}");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
        holder.kill();
        assert_eq!(network(&stage, &["rm", "-f", "foo", "kept"]).code, 0);
    }
    network(&stage, &["create", "--subnet", "10.9.0.0/24", "--label", "keep", "foo"]).ok();
    create(&stage, "bar", "10.8.0.0/24");
    assert_eq!(network(&stage, &["prune", "-f", "--filter", "until=1h"]).ok(), "");
    assert_eq!(network(&stage, &["prune", "-f", "--filter", "label!=keep"]).ok(), "Deleted Networks:\nbar\n\n");
    let pruned = network(&stage, &["prune", "-f", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(pruned.ok()).unwrap(), json!({ "removed": ["foo"] }));
}

#[test]
fn two_hundred() {
    let stage = Stage::new();
    let mut subnets = BTreeSet::new();
    let mut count = 0;
    // Automatic ones, until the pools are used up.
    loop {
        let made = network(&stage, &["create", "--json", &format!("net{count}")]);
        if made.code != 0 {
            assert_eq!(refused(&made, 1), "all predefined address pools have been fully subnetted");
            break;
        }
        let made: Value = serde_json::from_str(made.ok()).unwrap();
        let subnet = made["ipam"][0]["subnet"].as_str().unwrap().to_owned();
        assert!(subnets.insert(subnet.clone()), "{subnet} was given twice");
        count += 1;
    }
    // 31 less the one of `bridge`, and less those that this machine reaches itself.
    assert!((20..=30).contains(&count), "{count}: {subnets:?}");
    assert!(subnets.iter().all(|subnet| !subnet.starts_with("172.17.")));
    for n in count..200 {
        create(&stage, &format!("net{n}"), &format!("10.{n}.0.0/24"));
    }
    let listed = network(&stage, &["ls", "--filter", "type=custom", "--format", "{{.Name}}"]);
    assert_eq!(listed.ok().lines().collect::<Vec<_>>(), (0..200).map(|n| format!("net{n}")).collect::<Vec<_>>());
    let pruned = network(&stage, &["prune", "-f"]);
    assert_eq!(pruned.ok().lines().count(), 202);
    assert_eq!(network(&stage, &["ls", "-q"]).ok().lines().count(), 3);
}

#[test]
fn many_at_once() {
    let stage = Stage::new();
    let words: Vec<Vec<String>> = (0..12)
        .map(|n| {
            let name = if n % 2 == 0 { "same".to_owned() } else { format!("own{n}") };
            vec!["network".to_owned(), "create".to_owned(), "--json".to_owned(), name]
        })
        .collect();
    let children: Vec<Child> = words
        .iter()
        .map(|words| stage.tapway(&words.iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap())
        .collect();
    let ended: Vec<_> = children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let (made, refused): (Vec<_>, Vec<_>) = ended.into_iter().partition(|output| output.status.success());
    assert_eq!((made.len(), refused.len()), (7, 5));
    for output in refused {
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "tapway: network with name same already exists\n");
    }
    let subnets: BTreeSet<String> = made
        .iter()
        .map(|output| serde_json::from_slice::<Value>(&output.stdout).unwrap()["ipam"][0]["subnet"].to_string())
        .collect();
    assert_eq!(subnets.len(), 7, "{subnets:?}");
}

#[test]
fn a_definition_that_was_spoilt() {
    let stage = Stage::new();
    create(&stage, "foo", "10.9.0.0/24");
    create(&stage, "bar", "10.8.0.0/24");
    let path = definitions(&stage).join("foo.json");
    let text = fs::read_to_string(&path).unwrap();
    for spoilt in [&text[..text.len() / 2], "", "nonsense", &text.replace("\"internal\"", "\"internel\"")] {
        fs::write(&path, spoilt).unwrap();
        let says = |line: &str| {
            assert!(
                line.starts_with(&format!(
                    "tapway: the definition of network foo in {} cannot be used: ",
                    path.display()
                )),
                "{line}"
            );
            assert!(line.trim_end().ends_with("; correct the file or remove it"), "{line}");
            assert_eq!(line.trim_end().lines().count(), 1);
        };
        for words in [&["inspect", "-f", "{{.Name}}", "foo", "bar"][..], &["rm", "foo"], &["create", "foo"]] {
            let ended = network(&stage, words);
            assert_eq!(ended.code, 1, "{ended:?}");
            assert_eq!(ended.stdout, if words[0] == "inspect" { "bar\n" } else { "" });
            says(&ended.stderr);
        }
        // The others go on, and whoever lists them is told.
        let listed = network(&stage, &["ls", "--format", "{{.Name}}"]);
        assert_eq!((listed.code, listed.stdout.as_str()), (0, "bar\nbridge\nhost\nnone\n"));
        says(&listed.stderr);
        create(&stage, "other", "10.7.0.0/24");
        assert_eq!(network(&stage, &["rm", "other"]).ok(), "other\n");
    }
    let listed: Value = serde_json::from_str(network(&stage, &["ls", "--json"]).ok()).unwrap();
    assert_eq!((&listed["broken"][0]["name"], listed["networks"].as_array().unwrap().len()), (&json!("foo"), 4));
    let pruned = network(&stage, &["prune", "-f"]);
    assert_eq!(pruned.stdout, "Deleted Networks:\nbar\n\n");
    fs::write(&path, text).unwrap();
    assert_eq!(network(&stage, &["rm", "foo"]).ok(), "foo\n");
}

#[test]
fn where_they_are_kept() {
    let stage = Stage::new();
    let with = |state: &str, words: &[&str]| {
        let all: Vec<&str> = ["network"].iter().chain(words).copied().collect();
        let mut command = stage.tapway(&all);
        Ended::of(command.env("XDG_STATE_HOME", state))
    };
    // A relative path counts as none (XDG Base Directory Specification).
    with("relative/state", &["create", "--subnet", "10.9.0.0/24", "foo"]).ok();
    let mode = |path: &PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = definitions(&stage);
    assert_eq!((mode(&dir), mode(&dir.join("foo.json"))), (0o700, 0o600));
    let state = stage.dir().join("state");
    let state_name = state.to_str().unwrap();
    assert_eq!(with(state_name, &["ls", "-q", "-f", "type=custom"]).ok(), "");
    with(state_name, &["create", "--subnet", "10.9.0.0/24", "foo"]).ok();
    assert!(state.join("tapway/networks/foo.json").exists());
    // Others may write there: it is not used.
    fs::set_permissions(state.join("tapway/networks"), fs::Permissions::from_mode(0o777)).unwrap();
    for words in [&["ls"][..], &["create", "bar"]] {
        let text = refused(&with(state_name, words), 1);
        assert_eq!(
            text,
            format!(
                "{state_name}/tapway/networks is not a directory that belongs to this user alone; remove it or set XDG_STATE_HOME"
            )
        );
    }
    // Nobody may write there.
    let closed = stage.dir().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let text = refused(&with(closed.to_str().unwrap(), &["create", "bar"]), 1);
    assert_eq!(
        text,
        format!("cannot make the directory {}/tapway/networks: Permission denied (os error 13)", closed.display())
    );
    assert_eq!(with(closed.to_str().unwrap(), &["ls", "-q"]).ok().lines().count(), 3);
    // Neither variable.
    let mut command = stage.tapway(&["network", "create", "bar"]);
    let text = refused(&Ended::of(command.env_remove("HOME")), 1);
    assert_eq!(text, "networks have no place to be kept in: set HOME or XDG_STATE_HOME to an absolute path");
    assert_eq!(Ended::of(stage.tapway(&["network", "ls", "-q"]).env_remove("HOME")).ok().lines().count(), 3);
}

#[test]
fn a_full_disk_leaves_nothing_half_made() {
    let stage = Stage::new();
    let full = stage.dir().join("full");
    fs::create_dir(&full).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4k,mode=1777 none {0}; export XDG_STATE_HOME={0}/state\n\
         user tapway network ls -q > /dev/null\nuser mkdir -m 700 {0}/state\n\
         user sh -c 'head -c 4096 /dev/zero > {0}/fill'\n\
         user tapway network create --subnet 10.9.0.0/24 foo && exit 9\n\
         find {0}/state -type f; rm {0}/fill\n\
         user tapway network create --subnet 10.9.0.0/24 foo > /dev/null; user tapway network ls --format '{{{{.Name}}}}' -f type=custom",
        full.display()
    );
    let ended = stage.script(&script);
    assert_eq!(ended.code, 0, "{ended:?}");
    let path = full.join("state/tapway/networks");
    let expected = format!("tapway: cannot write {}/foo.json: No space left on device (os error 28)\n", path.display());
    assert_eq!(ended.stderr, expected);
    assert_eq!(ended.stdout, format!("{}/.lock\nfoo\n", path.display()));
}

#[test]
fn shells_complete_their_names() {
    let stage = Stage::new();
    create(&stage, "foo", "10.9.0.0/24");
    assert_eq!(stage.run(&["__complete", "networks"]).ok(), "bridge\nhost\nnone\nfoo\n");
    let script = format!(
        "source {}/contrib/completions/tapway.bash; COMP_WORDS=(tapway network rm f); COMP_CWORD=3; \
         cd \"${{TAPWAY%/*}}\"; PATH=$PWD:$PATH; _tapway tapway f rm; echo \"${{COMPREPLY[@]}}\"",
        env!("CARGO_MANIFEST_DIR")
    );
    // The sources may be closed to the ordinary user.
    let mut command = stage.as_user("bash");
    let completions = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/completions/tapway.bash")).unwrap();
    let copy = stage.dir().join("tapway.bash");
    fs::write(&copy, completions).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
    let script = script
        .replace(&format!("{}/contrib/completions/tapway.bash", env!("CARGO_MANIFEST_DIR")), copy.to_str().unwrap());
    assert_eq!(Ended::of(command.args(["-c", &script])).ok(), "foo\n");
}
