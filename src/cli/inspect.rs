//! `tapway inspect`: what is known of sandboxes, in the shape of `docker inspect`.
//!
//! From the state files, and for those that have ended from what is kept beside their logs. Fields that tapway has nothing
//! to say in are left out, but for those of `NetworkSettings.Networks`, which scripts read.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::port::Ports;
use super::table::output;
use super::{FAILURE, Failure, format, logs, printable, target};
use crate::sandbox::logs::store::{Kept, Store};
use crate::sandbox::state::{self, Address, Attachment};
use crate::telemetry::time;

const EXAMPLES: &str = "\
Examples:
  tapway inspect site
  tapway inspect site | jq -r '.[0].NetworkSettings.Networks.private.IPAddress'
      10.0.2.100
  tapway inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' site";

/// Docker's word for a time that has not come.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Arguments of `tapway inspect`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct InspectArgs {
    /// Names or ids of sandboxes
    #[arg(value_name = "SANDBOX", required = true)]
    pub sandbox: Vec<String>,
    /// Form of the output: 'json' or a Go template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Does it.
pub fn main(args: &InspectArgs) -> Result<u8, Failure> {
    let dir = target::runtime_dir()?;
    let store = logs::store(&dir);
    let (mut found, mut code) = (Vec::new(), 0);
    for name in &args.sandbox {
        let (kept, runs) = match state::find(&dir, name) {
            Ok(sandbox) => (Some(Kept { sandbox, ended: None, code: None }), true),
            Err(_) => (store.find(name), false),
        };
        if let Some(kept) = kept {
            found.push(docker(&kept, runs, &store));
        } else {
            crate::telemetry::say(&format!("tapway: No such container: {}", printable(name)));
            code = FAILURE;
        }
    }
    let text = match args.format.as_deref().filter(|format| !format.is_empty()) {
        Some(format) => format::objects(format, &found).map_err(|error| Failure::usage(error.to_string()))?,
        None => serde_json::to_string_pretty(&found).map_err(|error| Failure::runtime(&error))? + "\n",
    };
    output(&text)?;
    Ok(code)
}

fn docker(Kept { sandbox, ended, code }: &Kept, runs: bool, store: &Store) -> Value {
    let about = &sandbox.about;
    let at = |millis: Option<u64>| {
        millis.map_or_else(|| NEVER.to_owned(), |millis| time::rfc3339(Duration::from_millis(millis)))
    };
    let running = runs && about.is_started();
    let status = match (runs, running) {
        (true, true) => "running",
        (true, false) => "created",
        (false, _) => "exited",
    };
    let (path, arguments) = about.command.split_first().map_or((None, &[][..]), |(path, rest)| (Some(path), rest));
    // One that has ended has no ports and no addresses any more.
    let listeners = if runs { sandbox.ports.clone() } else { Vec::new() };
    let ports = Ports::of_state(listeners).docker();
    let networks: Map<String, Value> =
        about.networks.iter().map(|one| (one.network.clone(), network(one, runs))).collect();
    let mut all = json!({
        "Id": sandbox.id,
        "Created": at(about.created),
        "Path": path,
        "Args": arguments,
        "State": {
            "Status": status,
            "Running": running,
            "Pid": if running { about.init.unwrap_or(0) } else { 0 },
            "ExitCode": code.unwrap_or(0),
            "StartedAt": at(about.started),
            "FinishedAt": at(*ended),
        },
        "Name": format!("/{}", sandbox.name),
        "HostConfig": { "NetworkMode": about.network_mode, "PortBindings": ports },
        "Config": { "Hostname": about.hostname, "Cmd": about.command },
        "NetworkSettings": { "Ports": ports, "Networks": networks },
    });
    if !about.aside.is_empty() {
        all["NetworkSettings"]["Aside"] =
            about.aside.iter().map(|aside| json!({ "Network": aside.network, "Reason": aside.why })).collect();
    }
    if about.detached {
        all["LogPath"] = store.log(&sandbox.id).to_string_lossy().into();
    }
    all
}

fn network(attachment: &Attachment, runs: bool) -> Value {
    let of = |v6: bool| attachment.addresses.iter().filter(|_| runs).find(move |a| a.address.is_ipv6() == v6);
    let text = |address: Option<&Address>, which: fn(&Address) -> String| address.map(which).unwrap_or_default();
    let (v4, v6) = (of(false), of(true));
    let (address, gateway) = (|a: &Address| a.address.to_string(), |a: &Address| a.gateway.to_string());
    let list = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
    // What was asked for, as Docker has it: null if nothing was.
    let mut asked = Map::new();
    for (name, address) in [("IPv4Address", attachment.ip), ("IPv6Address", attachment.ip6)] {
        asked.extend(address.map(|address| (name.to_owned(), json!(address))));
    }
    let mut all = json!({
        "IPAMConfig": if asked.is_empty() { Value::Null } else { Value::Object(asked) },
        "Links": list(&attachment.links),
        "Aliases": list(&attachment.aliases),
        "DriverOpts": null,
        "GwPriority": attachment.gw_priority,
        "NetworkID": attachment.network_id,
        "EndpointID": if runs { attachment.endpoint_id.as_str() } else { "" },
        "Gateway": text(v4, gateway),
        "IPAddress": text(v4, address),
        "MacAddress": if runs { attachment.mac.as_str() } else { "" },
        "IPPrefixLen": v4.map_or(0, |a| a.prefix_len),
        "IPv6Gateway": text(v6, gateway),
        "GlobalIPv6Address": text(v6, address),
        "GlobalIPv6PrefixLen": v6.map_or(0, |a| a.prefix_len),
        "DNSNames": list(&attachment.names),
    });
    // Not Docker's, and not there where there are none.
    if runs && !attachment.faults.is_empty() {
        all["Faults"] = json!(attachment.faults);
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::network::config::{Listener, Proto};
    use crate::sandbox::state::{About, Aside, Sandbox};
    use std::path::Path;

    fn kept() -> Kept {
        let address = |address: &str, prefix_len, gateway: &str| Address {
            address: address.parse().unwrap(),
            prefix_len,
            gateway: gateway.parse().unwrap(),
        };
        let addresses = vec![address("10.0.2.100", 24, "10.0.2.2"), address("fd00::64", 64, "fd00::2")];
        let listener = Listener {
            proto: Proto::Tcp,
            host_addr: "::".parse().unwrap(),
            host_port: 8080,
            guest_addr: None,
            guest_port: 80,
        };
        let about = About {
            created: Some(1000),
            started: Some(1500),
            init: Some(42),
            command: ["sleep", "9"].map(str::to_owned).to_vec(),
            hostname: "box".to_owned(),
            network_mode: "private".to_owned(),
            networks: vec![Attachment {
                network: "private".to_owned(),
                mac: "02:42:0a:00:02:64".to_owned(),
                addresses,
                endpoint_id: "e".repeat(64),
                aliases: vec!["db".to_owned()],
                ip: Some([10, 0, 2, 100].into()),
                gw_priority: 3,
                ..Attachment::default()
            }],
            aside: vec![Aside { network: "back".to_owned(), why: "it dies".to_owned() }],
            detached: true,
            attached: None,
        };
        let sandbox =
            Sandbox { id: "0123456789ab".to_owned(), name: "web".to_owned(), pid: 7, ports: vec![listener], about };
        Kept { sandbox, ended: None, code: None }
    }

    #[test]
    fn the_shape_of_dockers() {
        let store = Store::at(Path::new("/state"));
        let value = docker(&kept(), true, &store);
        assert_eq!((value["Name"].as_str(), value["State"]["Status"].as_str()), (Some("/web"), Some("running")));
        assert_eq!(value["State"]["Pid"], 42);
        assert_eq!(value["State"]["StartedAt"], "1970-01-01T00:00:01.500000000Z");
        assert_eq!(value["State"]["FinishedAt"], NEVER);
        assert_eq!(value["NetworkSettings"]["Ports"], json!({ "80/tcp": [{ "HostIp": "::", "HostPort": "8080" }] }));
        assert_eq!(value["NetworkSettings"]["Aside"], json!([{ "Network": "back", "Reason": "it dies" }]));
        let network = &value["NetworkSettings"]["Networks"]["private"];
        assert_eq!((&network["IPAddress"], &network["IPPrefixLen"]), (&json!("10.0.2.100"), &json!(24)));
        assert_eq!((&network["GlobalIPv6Address"], &network["IPv6Gateway"]), (&json!("fd00::64"), &json!("fd00::2")));
        assert_eq!((&network["GwPriority"], &network["Aliases"]), (&json!(3), &json!(["db"])));
        assert_eq!(
            (&network["IPAMConfig"], &network["Links"]),
            (&json!({ "IPv4Address": "10.0.2.100" }), &Value::Null)
        );
        assert_eq!(network["EndpointID"].as_str().map(str::len), Some(64));
        assert_eq!(value["LogPath"], "/state/logs/0123456789ab.log");
    }

    #[test]
    fn what_has_ended_holds_nothing() {
        let kept = Kept { ended: Some(2000), code: Some(143), ..kept() };
        let value = docker(&kept, false, &Store::at(Path::new("/state")));
        assert_eq!(value["State"]["Status"], "exited");
        assert_eq!((&value["State"]["Pid"], &value["State"]["ExitCode"]), (&json!(0), &json!(143)));
        assert_eq!(value["NetworkSettings"]["Ports"], json!({}));
        assert_eq!(value["NetworkSettings"]["Networks"]["private"]["IPAddress"], "");
    }

    #[test]
    fn a_state_file_of_an_older_tapway() {
        let old = Sandbox { about: About::default(), ..kept().sandbox };
        let value = docker(&Kept { sandbox: old, ended: None, code: None }, true, &Store::at(Path::new("/state")));
        assert_eq!((&value["Created"], &value["State"]["Status"]), (&json!(NEVER), &json!("running")));
        assert_eq!(value["LogPath"], Value::Null);
    }
}
