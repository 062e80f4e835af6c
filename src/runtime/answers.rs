//! Who answers the verbs of the control socket that ask the network process: [`Answers::answer`], the same whether a monitor
//! asks (`runtime::told`) or the process has a socket of its own (`runtime::api`).

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use serde_json::{Map, Value, json};
use tokio::net::UnixStream;

use super::capture::Origin;
use super::command::DataPlane;
use super::events;
use super::faults::Faults;
use super::observe::Observer;
use super::told::descriptor_limit;
use crate::api::attach::Context;
use crate::api::error::{self, ApiError, Code};
use crate::api::verbs::capture::{CaptureList, CaptureStarted, CaptureStatus, ListCaptures, StartCapture, StopCapture};
use crate::api::verbs::fault;
use crate::api::verbs::observe::SUBSCRIBE;
use crate::api::verbs::ports::PortTraffic;
use crate::network::capture::CaptureOptions;

/// What only a monitor asks: what went through each published port, by number; those without traffic are left out.
pub const PORT_TRAFFIC: &str = "port_traffic";

/// What answers are made of.
pub struct Answers {
    plane: DataPlane,
    observer: Option<Observer>,
    faults: Option<Faults>,
}

impl Answers {
    /// Over this data plane; `observer` answers what is asked about it.
    pub fn new(plane: DataPlane, observer: Option<Observer>) -> Self {
        Self { plane, observer, faults: None }
    }

    /// The same, with faults on purpose.
    #[must_use]
    pub fn with_faults(self, faults: Faults) -> Self {
        Self { faults: Some(faults), ..self }
    }

    /// What observes the data plane.
    pub fn observer(&self) -> Option<&Observer> {
        self.observer.as_ref()
    }

    /// Answers one request; `fds` came with it.
    pub async fn answer(
        &self,
        verb: &str,
        arguments: Map<String, Value>,
        fds: Vec<OwnedFd>,
    ) -> Result<Value, ApiError> {
        self.answer_in(verb, arguments, fds, Context::default()).await
    }

    /// The same for a monitor, which knows more than its clients say.
    pub async fn answer_in(
        &self,
        verb: &str,
        arguments: Map<String, Value>,
        fds: Vec<OwnedFd>,
        context: Context,
    ) -> Result<Value, ApiError> {
        match verb {
            "start_capture" => {
                let arguments: StartCapture = error::arguments(verb, arguments)?;
                let options = CaptureOptions::try_from(arguments)?;
                // A monitor asks with the descriptor that it has, or not at all.
                if context.capture > 0 && fds.is_empty() {
                    let desc = format!(
                        "start_capture: the file's descriptor did not arrive: the network process has reached its limit on \
                         open files (RLIMIT_NOFILE, {}); close some connections, or raise it (ulimit -n) before tapway is started",
                        descriptor_limit()
                    );
                    return Err(ApiError::new(Code::Limit, desc));
                }
                let Ok([file]) = <[OwnedFd; 1]>::try_from(fds) else {
                    let desc =
                        "start_capture: the open file must come with the request, as its one descriptor (SCM_RIGHTS)";
                    return Err(ApiError::new(Code::BadArgument, desc));
                };
                let captures = self.plane.captures();
                let origin = match context {
                    Context { capture: 0, .. } => None,
                    Context { resumed: false, capture, .. } => Some(Origin::new(capture)),
                    Context { resumed: true, capture: id, sections, written } => {
                        Some(Origin::resumed(id, sections, written))
                    }
                };
                let id = captures.start_from(&self.plane, origin, file, &options).await?;
                error::value(&CaptureStarted { id })
            }
            "stop_capture" => {
                let StopCapture { id } = error::arguments(verb, arguments)?;
                let report = self.plane.captures().stop(&self.plane, id).await?;
                error::value(&CaptureStatus::from(report))
            }
            "list_captures" => {
                let ListCaptures {} = error::arguments(verb, arguments)?;
                let captures = self.plane.captures().list().into_iter().map(CaptureStatus::from).collect();
                error::value(&CaptureList { captures })
            }
            PORT_TRAFFIC => {
                let gone = |error: std::io::Error| ApiError::new(Code::Gone, error.to_string());
                let statistics = self.plane.statistics().await.map_err(gone)?;
                let traffic = statistics.ports.iter().map(|total| {
                    let traffic = PortTraffic {
                        connections: total.connections,
                        from_guest_bytes: total.traffic.from_guest_bytes,
                        to_guest_bytes: total.traffic.to_guest_bytes,
                        from_guest_packets: total.traffic.from_guest_packets,
                        to_guest_packets: total.traffic.to_guest_packets,
                    };
                    (total.listener, traffic)
                });
                error::value(&traffic.collect::<HashMap<usize, PortTraffic>>())
            }
            SUBSCRIBE => self.subscribe(arguments, fds, context.resumed).map(|()| json!({})),
            known
                if fault::VERBS.contains(&known)
                    && let Some(faults) = &self.faults =>
            {
                faults.answer(known, arguments).await
            }
            known
                if Observer::knows(known)
                    && let Some(observer) = &self.observer =>
            {
                let mut answer = observer.answer(known, arguments).await?;
                if known == "get_info"
                    && let Some(faults) = &self.faults
                {
                    answer["faults"] = faults.count().await.into();
                }
                Ok(answer)
            }
            other => Err(ApiError::new(Code::UnknownVerb, format!("the network process knows no verb '{other}'"))),
        }
    }

    /// Writes events to the client whose connection came along, and first that it is subscribed, unless it was so before
    /// (`resumed`).
    fn subscribe(&self, arguments: Map<String, Value>, fds: Vec<OwnedFd>, resumed: bool) -> Result<(), ApiError> {
        let internal = |what: String| ApiError::new(Code::Internal, what);
        let observer = self.observer.as_ref().ok_or_else(|| internal("nothing is observed".to_owned()))?;
        let Ok([connection]) = <[OwnedFd; 1]>::try_from(fds) else {
            return Err(internal("the client's connection did not come along".to_owned()));
        };
        let stream = UnixStream::from_std(connection.into())
            .map_err(|error| internal(format!("cannot watch the client's connection: {error}")))?;
        let subscription = observer.subscribe(arguments)?;
        tokio::task::spawn_local(async move {
            if !resumed && !welcome(&stream).await {
                return;
            }
            events::serve(stream, subscription).await;
        });
        Ok(())
    }
}

/// Tells a client that it is subscribed; false if it is gone.
async fn welcome(stream: &UnixStream) -> bool {
    const WELCOME: &[u8] = b"{\"return\":{}}\n";
    let mut sent = 0;
    while sent < WELCOME.len() {
        if stream.writable().await.is_err() {
            return false;
        }
        match stream.try_write(&WELCOME[sent..]) {
            Ok(len) => sent += len,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    true
}
