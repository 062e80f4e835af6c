//! `tapway network create NAME`.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::{failure, now, store};
use crate::cli::table::{line, output};
use crate::cli::{FAILURE, Failure};
use crate::network::creation::{self, Fresh, Request};
use crate::network::definition::check_name;
use crate::sandbox::host_routes;
use crate::sys::random;

const EXAMPLES: &str = "\
Examples:
  tapway network create web
  tapway network create --subnet 10.9.0.0/24 --gateway 10.9.0.254 --aux-address printer=10.9.0.7 office
  tapway network create --subnet 0.0.0.0/24 small
      any free /24
  tapway network create --ipv6 -o com.docker.network.driver.mtu=1500 -o com.docker.network.bridge.enable_icc=false shy
      IPv6 as well, and members do not reach each other

Exit code: 0; 2 if the command line is at fault, 1 if the network could not be made. Prints the id, 64 hex digits.";

/// Arguments of `tapway network create`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub struct CreateArgs {
    /// Its name: letters, digits, '_', '.' and '-', 63 at most
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Kind of network; there is 'bridge' alone
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge")]
    pub driver: String,

    /// Subnet, one of IPv4 and one of IPv6; 0.0.0.0/24 is any free one of that size [default: the next of Docker's pools]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub subnet: Vec<String>,

    /// Address of the gateway [default: the first of the subnet or of its --ip-range]
    #[arg(long, value_name = "ADDR", value_delimiter = ',')]
    pub gateway: Vec<String>,

    /// Part of the subnet that addresses are given from
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub ip_range: Vec<String>,

    /// Address that is given to nobody
    #[arg(long, value_name = "NAME=ADDR")]
    pub aux_address: Vec<String>,

    /// No way out and no published ports
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true, hide_default_value = true)]
    pub internal: bool,

    /// IPv6 as well; its subnet is a random fd…/64 unless given
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true, hide_default_value = true)]
    pub ipv6: bool,

    /// Option of the network; see docs/networks.md
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    pub opt: Vec<String>,

    /// Label
    #[arg(long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,

    /// Kept and shown; every network can be attached to
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_possible_values = true, hide_default_value = true)]
    pub attachable: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// IPv4, which every network has
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub ipv4: bool,

    /// Only 'local'
    #[arg(long, hide = true, value_name = "SCOPE", default_value = "local")]
    pub scope: String,

    /// Only 'default'
    #[arg(long, hide = true, value_name = "DRIVER", default_value = "default")]
    pub ipam_driver: String,

    /// Refused
    #[arg(long, hide = true, value_name = "KEY=VALUE")]
    pub ipam_opt: Vec<String>,

    /// Refused
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub ingress: bool,

    /// Refused
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub config_only: bool,

    /// Refused
    #[arg(long, hide = true, value_name = "NETWORK")]
    pub config_from: Option<String>,
}

/// Does it.
pub fn main(args: &CreateArgs) -> Result<u8, Failure> {
    let request = request(args)?;
    let network = store().create(request, &host_routes::read(), fresh()?).map_err(|error| failure(&error))?;
    if args.json {
        return output(&line(&json!(network)));
    }
    output(&format!("{}\n", network.id))
}

/// What is new in a network.
pub fn fresh() -> Result<Fresh, Failure> {
    let (mut id, mut ula) = ([0; 32], [0; 7]);
    random::fill(&mut id)
        .and_then(|()| random::fill(&mut ula))
        .map_err(|error| Failure { code: FAILURE, line: format!("cannot get random bytes: {error}") })?;
    Ok(Fresh { id, ula, now: now() })
}

/// What was typed, or what of it cannot be.
fn request(args: &CreateArgs) -> Result<Request, Failure> {
    refuse(args)?;
    check_name(&args.name).map_err(|error| Failure::usage(error.to_string()))?;
    if let Some(text) = args.aux_address.iter().find(|text| !text.contains('=')) {
        return Err(Failure::usage(format!("--aux-address '{}' is not NAME=ADDR", text.escape_default())));
    }
    let auxiliary: Vec<(String, String)> = args.aux_address.iter().map(|text| pair(text)).collect();
    let subnets = creation::assemble(&args.subnet, &args.ip_range, &args.gateway, &auxiliary);
    Ok(Request {
        name: args.name.clone(),
        internal: args.internal,
        attachable: args.attachable,
        ipv6: args.ipv6,
        subnets: subnets.map_err(|error| Failure::usage(error.to_string()))?,
        options: pairs(&args.opt),
        labels: pairs(&args.label),
    })
}

/// What docker knows and this does not, by name and with the reason.
fn refuse(args: &CreateArgs) -> Result<(), Failure> {
    let line = match (args.driver.as_str(), args.scope.as_str(), args.ipam_driver.as_str()) {
        ("bridge", "local", "default") => None,
        ("bridge", "local", driver) => {
            Some(format!("--ipam-driver '{driver}' is not supported: addresses are given by tapway itself ('default')"))
        }
        ("bridge", scope, _) => {
            Some(format!("--scope '{scope}' is not supported: a network is of this host alone ('local')"))
        }
        (mode @ ("host" | "null"), ..) => Some(format!("only one instance of \"{mode}\" network is allowed")),
        ("overlay", ..) => Some("--driver 'overlay' is not supported: a network is of this host alone".to_owned()),
        (driver @ ("macvlan" | "ipvlan"), ..) => Some(format!(
            "--driver '{driver}' needs root; publish ports on an address of the host instead (-p ADDR:8080:80)"
        )),
        (driver, ..) => Some(format!("plugin \"{driver}\" not found: there is the driver 'bridge' alone")),
    };
    let swarm = |option| Some(format!("{option} is not supported: it is for swarm"));
    let line = line
        .or_else(|| (!args.ipv4).then(|| "--ipv4=false is not supported: a network always has IPv4".to_owned()))
        .or_else(|| args.ingress.then(|| swarm("--ingress")).flatten())
        .or_else(|| args.config_only.then(|| swarm("--config-only")).flatten())
        .or_else(|| args.config_from.as_ref().and_then(|_| swarm("--config-from")))
        .or_else(|| {
            args.ipam_opt.first().map(|opt| format!("--ipam-opt '{opt}' is not known: there are no such options"))
        });
    line.map_or(Ok(()), |line| Err(Failure::usage(line)))
}

fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

/// As docker has it: without a '=' the value is empty, and of two the later counts.
fn pairs(texts: &[String]) -> BTreeMap<String, String> {
    texts.iter().map(|text| pair(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn typed(words: &[&str]) -> Result<Request, String> {
        let all = ["tapway", "network", "create"].iter().chain(words);
        let cli = crate::cli::Cli::try_parse_from(all).map_err(|error| error.to_string())?;
        match cli.command {
            crate::cli::Action::Network(args) => match args.action {
                super::super::NetworkAction::Create(args) => request(&args).map_err(|failure| failure.line),
                _ => panic!(),
            },
            _ => panic!(),
        }
    }

    #[test]
    fn what_docker_takes_is_taken() {
        let words = "--driver=bridge --subnet 10.0.0.0/24,fd00::/64 --gateway=10.0.0.9 --ip-range 10.0.0.128/25 \
            --aux-address a=10.0.0.7 --internal --ipv6=true --attachable=false --scope local --ipam-driver default \
            -o com.docker.network.driver.mtu=1400 --opt k --label a=b=c --label x foo";
        let request = typed(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert!(request.internal && request.ipv6 && !request.attachable);
        assert_eq!((request.name.as_str(), request.subnets.len()), ("foo", 2));
        assert_eq!(request.subnets[0].auxiliary["a"].to_string(), "10.0.0.7");
        assert_eq!(request.labels, [("a", "b=c"), ("x", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert_eq!(request.options["k"], "");
    }

    #[test]
    fn what_it_has_not_is_refused_by_name() {
        for (words, part) in [
            (&["-d", "overlay", "foo"][..], "'overlay'"),
            (&["-d", "macvlan", "foo"], "-p ADDR:8080:80"),
            (&["-d", "host", "foo"], "only one instance of \"host\" network is allowed"),
            (&["-d", "weave", "foo"], "plugin \"weave\" not found"),
            (&["--scope", "swarm", "foo"], "--scope 'swarm'"),
            (&["--ipam-driver", "null", "foo"], "--ipam-driver 'null'"),
            (&["--ipam-opt", "a=b", "foo"], "--ipam-opt 'a=b'"),
            (&["--ipv4=false", "foo"], "--ipv4=false"),
            (&["--ingress", "foo"], "--ingress"),
            (&["--config-only", "foo"], "--config-only"),
            (&["--config-from", "x", "foo"], "--config-from"),
            (&["--aux-address", "10.0.0.1", "foo"], "--aux-address '10.0.0.1' is not NAME=ADDR"),
            (&["--gateway", "10.0.0.1", "foo"], "every ip-range or gateway must have a corresponding subnet"),
            (&["bridge"], "operation is not permitted on predefined bridge network "),
            (&["a/b"], "\"a/b\" includes invalid characters"),
            (&[""], "invalid name: name is empty"),
        ] {
            let text = typed(words).unwrap_err();
            assert!(text.contains(part), "{words:?}: {text}");
        }
    }
}
