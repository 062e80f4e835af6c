//! What a request is made of: its envelope, and the arguments of every verb. A line of the input is a request.
//!
//! What must hold beside not panicking: whether it is an envelope does not depend on how its bytes come; what is refused has a text and
//! a code; and whatever the names and hosts of a sandbox have become, the network process takes them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tapway::api::envelope::{self, Envelope};
use tapway::api::error::{self, ApiError};
use tapway::api::registry::Specs;
use tapway::api::session::Hello;
use tapway::api::verbs::{capture, connect, dns, fault, observe, ports};
use tapway::api::{attach, hostfwd};
use tapway::network::capture::CaptureOptions;
use tapway::network::desired::{Desired, Limits};
use tapway::network::fault::{self as faults, Rule, Rules, Target, Wanted};
use tapway::network::{publish, zone};
use tapway::stack::census::{Cursor, FlowId};

fn refusal(error: &ApiError) {
    assert!(!error.desc.is_empty());
    let reply: Value = serde_json::from_slice(&error.reply()).expect("a refusal is JSON");
    assert!(reply["error"]["code"].is_string());
}

/// Reads the arguments of one verb by its type; what was read can be written and read again.
fn typed<T: DeserializeOwned + Serialize>(verb: &str, arguments: &Map<String, Value>) -> Option<T> {
    match error::arguments::<T>(verb, arguments.clone()) {
        Ok(read) => {
            let Ok(Value::Object(again)) = serde_json::to_value(&read) else { panic!("arguments are an object") };
            assert!(error::arguments::<T>(verb, again).is_ok(), "{verb}: what was read is refused");
            Some(read)
        }
        Err(error) => {
            refusal(&error);
            None
        }
    }
}

fn request(Envelope { execute: verb, arguments, .. }: Envelope, desired: &mut Desired) {
    for guest_v6 in [false, true] {
        match hostfwd::parse(&verb, &arguments, guest_v6) {
            Some(Err(fault)) => {
                let reply: Value = serde_json::from_slice(&hostfwd::refused(&fault)).expect("a refusal is JSON");
                assert!(reply["error"]["desc"].is_string());
            }
            Some(Ok(hostfwd::Request::Add(add))) => {
                let hostfwd::Add { proto, host_addr, host_port, guest_addr, guest_port } = add;
                let guest_addr = guest_addr.unwrap_or(host_addr);
                let entry = hostfwd::Entry { id: 1, proto, host_addr, host_port, guest_addr, guest_port };
                let reply: Value = serde_json::from_slice(&hostfwd::listed(&[entry, entry])).expect("a list is JSON");
                assert_eq!(reply["entries"].as_array().map(Vec::len), Some(2));
            }
            Some(Ok(hostfwd::Request::Remove(id))) => {
                let reply: Value = serde_json::from_slice(&hostfwd::added(id)).expect("a reply is JSON");
                assert_eq!(reply["return"]["id"], id);
            }
            Some(Ok(hostfwd::Request::List)) => {
                let reply: Value = serde_json::from_slice(&hostfwd::removed()).expect("a reply is JSON");
                assert!(reply["return"].is_object());
            }
            None => {}
        }
    }
    match verb.as_str() {
        "hello" => drop(typed::<Hello>(&verb, &arguments)),
        "publish" => {
            if let Some(ports::Publish { specs }) = typed(&verb, &arguments) {
                match Specs::parse(&specs) {
                    // Two without an address: one of each family.
                    Ok(parsed) => assert!(parsed.sockets() <= 2 * publish::MAX_PORTS, "{} sockets", parsed.sockets()),
                    Err(error) => refusal(&error),
                }
            }
        }
        "unpublish" => drop(typed::<ports::Unpublish>(&verb, &arguments)),
        "list_ports" => drop(typed::<ports::ListPorts>(&verb, &arguments)),
        "start_capture" => {
            if let Some(arguments) = typed::<capture::StartCapture>(&verb, &arguments)
                && let Err(error) = CaptureOptions::try_from(arguments)
            {
                refusal(&ApiError::from(error));
            }
        }
        "stop_capture" => drop(typed::<capture::StopCapture>(&verb, &arguments)),
        "set_fault" => {
            if let Some(arguments) = typed::<fault::SetFault>(&verb, &arguments) {
                let to = arguments.to.as_ref().map(|text| Wanted::parse(text)).transpose();
                if let (Ok(change), Ok(to)) = (arguments.change(), to) {
                    let to = to.and_then(|to| match to {
                        Wanted::Known(target) => Some(target),
                        Wanted::Name(name) => Target::of_name(&name, vec![[192, 0, 2, 7].into()], 1).ok(),
                    });
                    let mut rules = Rules::default();
                    if rules.set(to, &change, 1, &faults::Limits::default()).is_ok() {
                        for rule in rules.all() {
                            // What is told is read as the same.
                            assert_eq!(Rule::try_from(&fault::FaultRule::from(rule)).as_ref(), Ok(rule));
                        }
                    }
                }
            }
        }
        "clear_fault" => {
            if let Some(arguments) = typed::<fault::ClearFault>(&verb, &arguments)
                && let Err(error) = arguments.which()
            {
                refusal(&error);
            }
        }
        "list_flows" => {
            if let Some(list) = typed::<observe::ListFlows>(&verb, &arguments) {
                if let Some(Ok(cursor)) = list.after.as_ref().map(|text| text.parse::<Cursor>()) {
                    assert_eq!(cursor.to_string().parse(), Ok(cursor));
                }
                for end in [list.guest, list.peer].into_iter().flatten() {
                    let _ = tapway::runtime::observe::end_filter(&end);
                }
            }
        }
        "kill_flow" => {
            if let Some(observe::KillFlow { id }) = typed(&verb, &arguments)
                && let Ok(id) = id.parse::<FlowId>()
            {
                assert_eq!(id.to_string().parse(), Ok(id));
            }
        }
        "set_log_level" => {
            if let Some(observe::SetLogLevel { level }) = typed(&verb, &arguments) {
                // Nothing is logged here, so none is set.
                assert!(tapway::telemetry::set_level(&level).is_err());
            }
        }
        "connect_network" => drop(typed::<connect::ConnectNetwork>(&verb, &arguments)),
        "disconnect_network" => drop(typed::<connect::DisconnectNetwork>(&verb, &arguments)),
        "subscribe" => drop(typed::<observe::Subscribe>(&verb, &arguments)),
        "get_stats" | "get_metrics" | "get_info" => drop(typed::<observe::Nothing>(&verb, &arguments)),
        _ => {
            let Some(read) = dns::Request::read(&verb, arguments) else { return };
            match read {
                Ok(request) => {
                    let before = desired.clone();
                    if request.apply(desired, &Limits::default(), &[]).is_err() {
                        assert_eq!(before.zone_records(), desired.zone_records(), "half a change");
                    }
                    let records = desired.zone_records();
                    assert!(zone::Zone::new(records.clone(), &zone::Limits::default()).is_ok());
                    assert!(
                        attach::zone_messages(records)
                            .is_ok_and(|messages| messages.iter().all(|m| attach::text(m).is_ok()))
                    );
                    let _ = desired.dns().resolv_conf(&[]);
                }
                Err(error) => refusal(&error::bad_arguments(&verb, &error)),
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut desired = Desired::default();
    for line in input.split(|&byte| byte == b'\n') {
        let whole = envelope::read(line, true).expect("what has ended is read or refused");
        let early = &line[..line.len() / 2];
        // Which fault is found may depend on how much is there, but not whether there is one.
        match envelope::read(early, false) {
            Some(Ok(read)) => assert_eq!(Ok(&read), whole.as_ref(), "the first half alone was another request"),
            Some(Err(_)) => assert!(whole.is_err(), "the first half alone was refused"),
            None => {}
        }
        if let Ok(envelope) = whole {
            request(envelope, &mut desired);
        }
    }
});
