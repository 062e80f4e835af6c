//! `tapway ps`: the sandboxes that run, as `docker ps` lists containers.
//!
//! Read off the state files alone, whose locks say who lives; no monitor is asked, so one that is stopped holds up nothing.
//! With `--all` those are shown, too, that have ended and whose logs are kept.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::format::{self, Format};
use super::table::{Side, Table, line, output};
use super::{Failure, logs, target};
use crate::network::config::Listener;
use crate::network::timestamp::Timestamp;
use crate::sandbox::state::{self, Sandbox};
use crate::telemetry::{self, time};

const EXAMPLES: &str = "\
Examples:
  tapway ps
      ID            NAME  COMMAND           CREATED         STATUS        NETWORK             PORTS
      4c5b32e41f0a  site  \"python3 -m ht…\"  5 seconds ago   Up 5 seconds  private 10.0.2.100  0.0.0.0:8080->80/tcp
  tapway stop $(tapway ps -q)
  tapway ps --filter name=web --filter network=private --json

Fields of --format: .ID .Names .Command .CreatedAt .RunningFor .State .Status .Networks .Ports.
Filters: id=, name= (a part of it), network=, status=running|created|exited; several of one kind are alternatives.";

/// Characters of a command that are shown.
const COMMAND: usize = 20;

/// Arguments of `tapway ps`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct PsArgs {
    /// Show those that have ended, too, as long as their logs are kept
    #[arg(short, long)]
    pub all: bool,
    /// Print ids alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Show whole commands
    #[arg(long)]
    pub no_trunc: bool,
    /// Only those that fit
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Form of the output: 'table', 'table TEMPLATE', 'json' or a Go template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

/// Does it.
pub fn main(args: &PsArgs) -> Result<u8, Failure> {
    let filters = args.filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let dir = target::runtime_dir()?;
    let mut all: Vec<Listed> = state::running(&dir).into_iter().map(|sandbox| Listed { sandbox, end: None }).collect();
    if args.all || filters.iter().any(|filter| *filter == Filter { key: Key::Status, value: EXITED.to_owned() }) {
        let kept = logs::store(&dir).all();
        let over = kept.into_iter().filter(|kept| !all.iter().any(|one| one.sandbox.id == kept.sandbox.id));
        let over: Vec<Listed> = over
            .map(|kept| Listed {
                sandbox: Sandbox { ports: Vec::new(), ..kept.sandbox },
                end: Some((kept.ended, kept.code)),
            })
            .collect();
        all.extend(over);
    }
    all.retain(|one| fits(one, &filters));
    let usage = |error: format::template::TemplateError| Failure::usage(error.to_string());
    let asked = args.format.as_deref().map(|text| Format::parse(text, TABLE)).transpose().map_err(usage)?;
    // The newest first, as Docker has it.
    all.sort_by(|a, b| (b.sandbox.about.created, &a.sandbox.name).cmp(&(a.sandbox.about.created, &b.sandbox.name)));
    if args.quiet {
        if asked.is_some() {
            telemetry::say("WARNING: Ignoring custom format, because both --format and --quiet are set.");
        }
        return output(&all.iter().fold(String::new(), |text, one| text + &one.sandbox.id + "\n"));
    }
    let now = time::now();
    if args.json {
        let all: Vec<Value> = all.iter().map(|one| to_json(one, now)).collect();
        return output(&line(&json!({ "sandboxes": all })));
    }
    if let Some(format) = asked {
        let rows: Vec<Row> = all.iter().map(|one| Row::new(one, now, args.no_trunc)).collect();
        return output(&format.render(&HEADINGS, &rows).map_err(usage)?);
    }
    output(&render(&all, now, args.no_trunc))
}

/// Docker's columns, and the network's where its image would be.
const TABLE: &str = "{{.ID}}\t{{.Names}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Networks}}\t{{.Ports}}";

/// Docker's headings of the fields of a [`Row`].
const HEADINGS: [(&str, &str); 9] = [
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("State", "STATE"),
    ("Status", "STATUS"),
    ("Networks", "NETWORKS"),
    ("Ports", "PORTS"),
];

/// What a template sees of a sandbox: the fields of `docker ps` that tapway has something to say in.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    command: String,
    created_at: String,
    #[serde(rename = "ID")]
    id: String,
    names: String,
    networks: String,
    ports: String,
    running_for: String,
    state: &'static str,
    status: String,
}

impl Row {
    fn new(one: &Listed, now: Duration, whole: bool) -> Self {
        let about = &one.sandbox.about;
        let created = about.created.map(|millis| Timestamp::since_epoch(Duration::from_millis(millis)).go());
        let networks: Vec<&str> = about.networks.iter().map(|attachment| attachment.network.as_str()).collect();
        Self {
            command: command(&about.command.join(" "), whole),
            created_at: created.unwrap_or_default(),
            id: one.sandbox.id.clone(),
            names: one.sandbox.name.clone(),
            networks: if networks.is_empty() { about.network_mode.clone() } else { networks.join(",") },
            ports: ports(&one.sandbox.ports),
            running_for: since(about.created, now).map_or_else(String::new, |span| format!("{span} ago")),
            state: state_of(one),
            status: status(one, now),
        }
    }
}

/// A row.
struct Listed {
    sandbox: Sandbox,
    /// When it ended and with what code, where that is known; None: it runs.
    end: Option<(Option<u64>, Option<u8>)>,
}

const EXITED: &str = "exited";

/// One `--filter`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    key: Key,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Id,
    Name,
    Network,
    Status,
}

impl Filter {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            Failure::usage(format!("bad format of filter '{text}' (expected name=value), such as name=web"))
        })?;
        let key = match key {
            "id" => Key::Id,
            "name" => Key::Name,
            "network" => Key::Network,
            "status" if matches!(value, "running" | "created" | EXITED) => Key::Status,
            "status" => {
                return Err(Failure::usage(format!(
                    "invalid filter 'status={value}': give running, created or exited"
                )));
            }
            _ => return Err(Failure::usage(format!("invalid filter '{key}'; give id, name, network or status"))),
        };
        Ok(Self { key, value: value.to_owned() })
    }

    fn fits(&self, one: &Listed) -> bool {
        let (sandbox, about, value) = (&one.sandbox, &one.sandbox.about, self.value.as_str());
        match self.key {
            Key::Id => sandbox.id.starts_with(value),
            // Docker has a regular expression here; these are the ones that are written.
            Key::Name => {
                let bare = value.trim_start_matches(['^', '/']).trim_end_matches('$');
                let (start, end) = (value.starts_with('^'), value.ends_with('$'));
                match (start, end) {
                    (true, true) => sandbox.name == bare,
                    (true, false) => sandbox.name.starts_with(bare),
                    (false, true) => sandbox.name.ends_with(bare),
                    (false, false) => sandbox.name.contains(bare),
                }
            }
            Key::Network => about.network_mode == value || about.networks.iter().any(|one| one.network == value),
            Key::Status => value == state_of(one),
        }
    }
}

/// Any of each kind, and all kinds.
fn fits(one: &Listed, filters: &[Filter]) -> bool {
    let any = |key| filters.iter().filter(|other| other.key == key).any(|other| other.fits(one));
    filters.iter().all(|filter| any(filter.key))
}

fn state_of(one: &Listed) -> &'static str {
    match (&one.end, one.sandbox.about.is_started()) {
        (Some(_), _) => EXITED,
        (None, true) => "running",
        (None, false) => "created",
    }
}

/// How long ago; nothing where the state file is too old to say.
fn since(at: Option<u64>, now: Duration) -> Option<String> {
    at.map(|at| time::in_words(now.saturating_sub(Duration::from_millis(at))))
}

fn status(one: &Listed, now: Duration) -> String {
    match one.end {
        None if one.sandbox.about.is_started() => {
            let up = since(one.sandbox.about.started, now).map_or_else(String::new, |span| format!(" {span}"));
            let aside: Vec<&str> = one.sandbox.about.aside.iter().map(|aside| aside.network.as_str()).collect();
            let aside = if aside.is_empty() { String::new() } else { format!(" (put aside by {})", aside.join(", ")) };
            format!("Up{up}{aside}")
        }
        None => "Created".to_owned(),
        Some((at, code)) => {
            // Of a monitor that was killed nothing is known, but that.
            let code = code.map_or_else(|| "?".to_owned(), |code| code.to_string());
            format!("Exited ({code})") + &since(at, now).map_or_else(String::new, |span| format!(" {span} ago"))
        }
    }
}

fn render(all: &[Listed], now: Duration, whole: bool) -> String {
    let columns = ["ID", "NAME", "COMMAND", "CREATED", "STATUS", "NETWORK", "PORTS"];
    let mut table = Table::new(&columns.map(|name| (name, Side::Left)));
    for one in all {
        let sandbox = &one.sandbox;
        table.row([
            sandbox.id.clone(),
            sandbox.name.clone(),
            command(&sandbox.about.shown_command(), whole),
            since(sandbox.about.created, now).map_or_else(String::new, |span| format!("{span} ago")),
            status(one, now),
            network(sandbox),
            ports(&sandbox.ports),
        ]);
    }
    table.render()
}

/// In quotes, cut as Docker cuts.
fn command(text: &str, whole: bool) -> String {
    let mut shown: String = text.to_owned();
    if !whole && text.chars().count() > COMMAND {
        shown = text.chars().take(COMMAND - 1).chain(['…']).collect();
    }
    format!("\"{}\"", shown.replace('"', "\\\""))
}

fn network(sandbox: &Sandbox) -> String {
    let about = &sandbox.about;
    let one = |attachment: &state::Attachment| {
        let first = attachment.addresses.first().map(|address| format!(" {}", address.address)).unwrap_or_default();
        format!("{}{first}", attachment.network)
    };
    if about.networks.is_empty() {
        return about.network_mode.clone();
    }
    about.networks.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// As Docker writes them: ports that are the same on both sides in ranges, the others one by one behind them.
fn ports(listeners: &[Listener]) -> String {
    let mut sorted: Vec<&Listener> = listeners.iter().collect();
    sorted.sort_by_key(|l| (l.guest_port, l.host_addr, l.host_port, l.proto.name()));
    let address = |host: IpAddr| if host.is_ipv6() { format!("[{host}]") } else { host.to_string() };
    // Address, protocol, first and last port, in the order in which they began.
    let mut groups: Vec<(IpAddr, &'static str, u16, u16)> = Vec::new();
    let (mut done, mut single) = (Vec::new(), Vec::new());
    let range = |(host, proto, first, last): (IpAddr, &str, u16, u16)| {
        let host = address(host);
        let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
        format!("{host}:{ports}->{ports}/{proto}")
    };
    for Listener { proto, host_addr, host_port, guest_port, .. } in sorted {
        if host_port != guest_port {
            single.push(format!("{}:{host_port}->{guest_port}/{proto}", address(*host_addr)));
            continue;
        }
        match groups.iter_mut().find(|(host, name, ..)| (*host, *name) == (*host_addr, proto.name())) {
            Some((.., last)) if last.checked_add(1) == Some(*host_port) => *last = *host_port,
            Some(group) => {
                done.push(range(std::mem::replace(group, (*host_addr, proto.name(), *host_port, *host_port))));
            }
            None => groups.push((*host_addr, proto.name(), *host_port, *host_port)),
        }
    }
    done.extend(groups.into_iter().map(range));
    done.extend(single);
    done.join(", ")
}

fn to_json(one: &Listed, now: Duration) -> Value {
    let (sandbox, about) = (&one.sandbox, &one.sandbox.about);
    let (ended, code) = one.end.unwrap_or_default();
    let at = |millis: Option<u64>| millis.map(|millis| time::rfc3339(Duration::from_millis(millis)));
    json!({
        "id": sandbox.id,
        "name": sandbox.name,
        "command": about.command,
        "created": at(about.created),
        "started": at(about.started),
        "ended": at(ended),
        "exit_code": code,
        "state": state_of(one),
        "status": status(one, now),
        "pid": sandbox.pid,
        "detached": about.detached,
        "network_mode": about.network_mode,
        "networks": about.networks,
        "ports": sandbox.ports,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::config::Proto;
    use crate::sandbox::state::{About, Address, Attachment};

    fn listener(host: &str, host_port: u16, guest_port: u16, proto: Proto) -> Listener {
        Listener { proto, host_addr: host.parse().unwrap(), host_port, guest_addr: None, guest_port }
    }

    fn web() -> Sandbox {
        let address =
            Address { address: "10.0.2.100".parse().unwrap(), prefix_len: 24, gateway: "10.0.2.2".parse().unwrap() };
        Sandbox {
            id: "0123456789ab".to_owned(),
            name: "web-1".to_owned(),
            pid: 7,
            ports: vec![listener("0.0.0.0", 8080, 80, Proto::Tcp)],
            about: About {
                created: Some(1_000_000),
                started: Some(1_005_000),
                command: ["nginx", "-g", "daemon \"off\";"].map(str::to_owned).to_vec(),
                network_mode: "private".to_owned(),
                networks: vec![Attachment {
                    network: "private".to_owned(),
                    addresses: vec![address],
                    ..Attachment::default()
                }],
                ..About::default()
            },
        }
    }

    #[test]
    fn a_table_as_dockers() {
        let old = Sandbox { about: About::default(), ports: vec![], name: "old".to_owned(), ..web() };
        let run = |sandbox| Listed { sandbox, end: None };
        let text = render(&[run(web()), run(old)], Duration::from_secs(1065), false);
        assert_eq!(
            text,
            "ID            NAME   COMMAND                  CREATED             STATUS             NETWORK             PORTS\n\
             0123456789ab  web-1  \"nginx -g daemon \\\"of…\"  About a minute ago  Up About a minute  private 10.0.2.100  \
             0.0.0.0:8080->80/tcp\n\
             0123456789ab  old    \"\"                                           Up\n"
        );
        assert!(render(&[run(web())], Duration::ZERO, true).contains("\"nginx -g daemon \\\"off\\\";\""));
        let row = Row::new(&run(web()), Duration::from_secs(1065), false);
        let format = Format::parse("table {{.Names}}\\t{{.State}}\\t{{.Networks}}\\t{{.Ports}}", TABLE).unwrap();
        assert_eq!(
            format.render(&HEADINGS, &[row]).unwrap(),
            "NAMES     STATE     NETWORKS   PORTS\nweb-1     running   private    0.0.0.0:8080->80/tcp\n"
        );
        let over = |end| status(&Listed { sandbox: web(), end: Some(end) }, Duration::from_secs(1065));
        assert_eq!(over((Some(1_035_000), Some(143))), "Exited (143) 30 seconds ago");
        assert_eq!(over((None, None)), "Exited (?)");
    }

    #[test]
    fn ports_as_dockers() {
        let tcp = |host, port| listener(host, port, port, Proto::Tcp);
        for (listeners, text) in [
            (vec![], ""),
            (vec![tcp("::", 80), tcp("0.0.0.0", 80)], "0.0.0.0:80->80/tcp, [::]:80->80/tcp"),
            (
                vec![tcp("127.0.0.1", 81), tcp("127.0.0.1", 80), tcp("127.0.0.1", 82), tcp("127.0.0.1", 90)],
                "127.0.0.1:80-82->80-82/tcp, 127.0.0.1:90->90/tcp",
            ),
            (
                vec![listener("0.0.0.0", 8080, 80, Proto::Tcp), listener("0.0.0.0", 53, 53, Proto::Udp)],
                "0.0.0.0:53->53/udp, 0.0.0.0:8080->80/tcp",
            ),
            (vec![tcp("0.0.0.0", 65535)], "0.0.0.0:65535->65535/tcp"),
        ] {
            assert_eq!(ports(&listeners), text);
        }
    }

    #[test]
    fn filters() {
        let fit = |texts: &[&str]| {
            let filters: Vec<Filter> = texts.iter().map(|text| Filter::parse(text).unwrap()).collect();
            fits(&Listed { sandbox: web(), end: None }, &filters)
        };
        for good in [
            &[][..],
            &["name=web"],
            &["name=^web-1$"],
            &["name=^/web"],
            &["name=-1$"],
            &["id=0123"],
            &["network=private"],
            &["status=running"],
            &["name=db", "name=web"],
            &["name=web", "network=private"],
        ] {
            assert!(fit(good), "{good:?}");
        }
        for bad in [
            &["name=db"][..],
            &["name=^1"],
            &["id=123"],
            &["network=none"],
            &["status=created"],
            &["name=web", "network=x"],
        ] {
            assert!(!fit(bad), "{bad:?}");
        }
        for (text, word) in [("name", "'name'"), ("colour=red", "'colour'"), ("status=dead", "status=dead")] {
            assert!(Filter::parse(text).unwrap_err().line.contains(word), "{text}");
        }
    }
}
