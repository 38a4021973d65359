//! The stream of flows: events of the kernel programs, with names, for whoever reads at the moment.
//!
//! [`Hub::run`] is a task of its own, started by [`crate::run`]: it reads the programs' ring and hands
//! each event to all readers. The programs make events only while somebody reads: [`Hub::open`] and
//! the end of a [`Reader`] have the reconcile loop, which owns the maps, switch them on and off.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::Stream;
use jiff::{SignedDuration, Timestamp};
use mesh_api::rest::{FlowEvent, FlowLine};
use mesh_core::{Id, Refusal};
use mesh_loader::{Event, Events, Watch};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{broadcast, mpsc, oneshot},
    time::timeout,
};
use tokio_stream::{StreamExt, wrappers::BroadcastStream};
use tokio_util::sync::CancellationToken;

use super::{Names, monotonic_ns};
use crate::{execute::chain, ledger::Ledger, reasons, reconcile::Request};

/// Events that a slow reader may be behind before it misses some.
const BEHIND: usize = 8192;
/// Events that are handed on before other tasks get a turn.
const BATCH: usize = 512;
/// How long the reconcile loop may take to switch the programs' events on.
const SWITCH_TIME: Duration = Duration::from_secs(10);

/// A line with what filters ask for.
#[derive(Debug)]
struct Line {
    /// On the clock of [`monotonic_ns`].
    at_ns: u64,
    drop: bool,
    service: Option<Id>,
    line: FlowLine,
}

/// Readers by what they want.
#[derive(Debug, Default)]
struct Readers {
    flows: usize,
    drops: usize,
}

/// Where events come in and go out.
pub struct Hub {
    live: broadcast::Sender<Arc<Line>>,
    readers: Mutex<Readers>,
    handles: mpsc::UnboundedSender<Events>,
    requests: mpsc::Sender<Request>,
    ledger: Arc<Ledger>,
    stop: CancellationToken,
}

impl Hub {
    /// The hub, and where [`Self::run`] gets the rings from.
    pub fn new(
        ledger: Arc<Ledger>,
        requests: mpsc::Sender<Request>,
        stop: CancellationToken,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Events>) {
        let (handles, rings) = mpsc::unbounded_channel();
        let hub = Self {
            live: broadcast::Sender::new(BEHIND),
            readers: Mutex::default(),
            handles,
            requests,
            ledger,
            stop,
        };
        (Arc::new(hub), rings)
    }

    /// A loader's ring, from which events come from now on.
    pub fn attach(&self, events: Events) {
        // The task ends with meshd only; then nobody reads either.
        drop(self.handles.send(events));
    }

    /// What the programs should tell now.
    pub fn wanted(&self) -> Watch {
        let readers = self.readers();
        Watch {
            flows: readers.flows > 0,
            drops: readers.drops > 0,
        }
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        // Counts are changed by one statement each: a panic elsewhere leaves them right.
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to read: new flows, or dropped packets; of one service, or of all; from now on. Returns
    /// once the programs tell them.
    ///
    /// # Errors
    /// The programs' events can not be switched on.
    pub async fn open(self: &Arc<Self>, drops: bool, service: Option<Id>) -> Result<impl Stream<Item = FlowLine> + use<>, Refusal> {
        let live = self.live.subscribe();
        // The ring may still have what an earlier reader asked for.
        let since = monotonic_ns();
        let place = Place::take(self, drops);
        timeout(SWITCH_TIME, self.switch())
            .await
            .unwrap_or_else(|_| Err(Refusal::other("meshd is busy changing this host's network: try again")))?;
        let lines = BroadcastStream::new(live).filter_map(move |got| {
            // Until the stream ends, and with it this closure.
            let _ = &place;
            match got {
                Ok(line) => {
                    let is_wanted = line.at_ns >= since && line.drop == drops && (service.is_none() || line.service == service);
                    is_wanted.then(|| line.line.clone())
                }
                Err(tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged(events)) => Some(FlowLine::Lost { events }),
            }
        });
        Ok(futures::StreamExt::take_until(lines, self.stop.clone().cancelled_owned()))
    }

    /// Has the reconcile loop bring the programs to what is wanted when it gets to it.
    async fn switch(&self) -> Result<(), Refusal> {
        let (to, answer) = oneshot::channel();
        let stopping = || Refusal::unavailable("meshd is stopping");
        self.requests.send(Request::Watch(to)).await.map_err(|_| stopping())?;
        let done = answer.await.map_err(|_| stopping())?;
        done.map_err(|e| Refusal::other(format!("the programs do not tell of flows: {}", chain(&e))))
    }

    /// Reads events and hands them on, until meshd stops.
    pub async fn run(self: Arc<Self>, mut rings: mpsc::UnboundedReceiver<Events>) {
        let mut ring: Option<AsyncFd<Events>> = None;
        let mut names = Resolver::default();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                Some(events) = rings.recv() => match register(events) {
                    Ok(fd) => ring = Some(fd),
                    Err(error) => tracing::error!(%error, "the programs' events can not be read: meshctl flows shows none"),
                },
                done = self.hand_on(&mut ring, &mut names) => if let Err(error) = done {
                    tracing::error!(%error, "the programs' events can not be read any more: meshctl flows shows none");
                    ring = None;
                },
            }
        }
    }

    /// Hands on one batch, once there is something.
    async fn hand_on(&self, ring: &mut Option<AsyncFd<Events>>, names: &mut Resolver) -> std::io::Result<()> {
        let Some(ring) = ring else { return std::future::pending().await };
        let mut ready = ring.readable_mut().await?;
        names.refresh(&self.ledger);
        for _ in 0..BATCH {
            let Some(event) = ready.get_inner_mut().next() else {
                ready.clear_ready();
                return Ok(());
            };
            // Nobody reading any more is fine.
            drop(self.live.send(Arc::new(names.line(&event))));
        }
        tokio::task::yield_now().await;
        Ok(())
    }
}

/// To the runtime.
#[expect(
    deprecated,
    reason = "its successor is unsafe, which this crate never is; the ring owns its descriptor for as long as it is registered"
)]
fn register(events: Events) -> std::io::Result<AsyncFd<Events>> {
    AsyncFd::with_interest(events, Interest::READABLE)
}

/// A reader's place: while it is held, the programs tell what it reads.
struct Place {
    hub: Arc<Hub>,
    drops: bool,
}

impl Place {
    fn take(hub: &Arc<Hub>, drops: bool) -> Self {
        *count(&mut hub.readers(), drops) += 1;
        Self { hub: hub.clone(), drops }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *count(&mut self.hub.readers(), self.drops) -= 1;
        let hub = self.hub.clone();
        // Without a runtime the process is ending, and the programs' switch with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(e) = hub.switch().await {
                    tracing::debug!(error = %e.message, "events were not switched off");
                }
            });
        }
    }
}

fn count(readers: &mut Readers, drops: bool) -> &mut usize {
    if drops { &mut readers.drops } else { &mut readers.flows }
}

/// Numbers to names, addresses and times.
#[derive(Default)]
struct Resolver {
    revision: u64,
    names: Names,
    devices: HashMap<u32, Option<String>>,
    /// Unix time of the monotonic clock's zero.
    boot: Timestamp,
}

impl Resolver {
    /// Before a batch: what may have changed since the last.
    fn refresh(&mut self, ledger: &Ledger) {
        let view = ledger.view();
        if view.head.revision != self.revision {
            self.revision = view.head.revision;
            self.names = Names::of(&view.objects);
        }
        self.devices.clear();
        let up = SignedDuration::from_nanos(i64::try_from(monotonic_ns()).unwrap_or(i64::MAX));
        self.boot = Timestamp::now().saturating_sub(up).unwrap_or(Timestamp::UNIX_EPOCH);
    }

    fn line(&mut self, event: &Event) -> Line {
        let set = self.names.set(event.service);
        let after = SignedDuration::from_nanos(i64::try_from(event.at_ns).unwrap_or(i64::MAX));
        let seen = FlowEvent {
            time: self.boot.saturating_add(after).unwrap_or(self.boot),
            reason: event.reason.to_owned(),
            meaning: reasons::meaning(event.reason).to_owned(),
            protocol: protocol(event.proto),
            source: end(event, event.src, event.sport),
            destination: end(event, event.dst, event.dport),
            service: set.map(|s| s.service.clone()),
            backend: self.names.backend(event.backend).cloned(),
            bytes: event.len,
            device: self.devices.entry(event.ifindex).or_insert_with(|| device(event.ifindex)).clone(),
        };
        Line {
            at_ns: event.at_ns,
            drop: event.dropped,
            service: set.and_then(|s| s.id),
            line: if event.dropped {
                FlowLine::Drop(seen)
            } else {
                FlowLine::Flow(seen)
            },
        }
    }
}

/// IANA protocol numbers by name; 0: dropped before the program had looked, or no IP packet.
fn protocol(number: u8) -> String {
    match number {
        0 => "-".to_owned(),
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

/// Reasons to drop what is never an IP packet.
const NOT_IP: [&str; 2] = ["drop_spoofed_arp", "drop_ethertype"];

/// An end of a flow, if the packet was IP, with its port where the protocol has ports.
fn end(event: &Event, addr: IpAddr, port: u16) -> Option<String> {
    match event.proto {
        0 if NOT_IP.contains(&event.reason) || addr.is_unspecified() => None,
        6 | 17 => Some(SocketAddr::new(addr, port).to_string()),
        _ => Some(addr.to_string()),
    }
}

fn device(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(proto: u8, dropped: bool) -> Event {
        Event {
            at_ns: 1_500_000_000,
            reason: if dropped { "drop_spoofed_ip" } else { "new_flow" },
            dropped,
            src: "192.168.77.200".parse().unwrap(),
            dst: "fd00::1".parse().unwrap(),
            sport: 4000,
            dport: 8888,
            proto,
            service: 5,
            backend: 6,
            len: 74,
            ifindex: 1,
        }
    }

    fn now(proto: u8, dropped: bool) -> Event {
        Event {
            at_ns: monotonic_ns(),
            ..event(proto, dropped)
        }
    }

    fn seen(resolver: &mut Resolver, event: &Event) -> FlowEvent {
        match resolver.line(event).line {
            FlowLine::Flow(e) | FlowLine::Drop(e) => e,
            FlowLine::Lost { .. } => panic!("not an event"),
        }
    }

    #[test]
    fn events_become_lines() {
        let mut resolver = Resolver::default();
        let tcp = seen(&mut resolver, &event(6, false));
        assert_eq!(tcp.time, "1970-01-01T00:00:01.5Z".parse().unwrap());
        assert_eq!(
            (tcp.source.as_deref(), tcp.destination.as_deref()),
            (Some("192.168.77.200:4000"), Some("[fd00::1]:8888"))
        );
        assert_eq!((tcp.device.as_deref(), tcp.service, tcp.backend), (Some("lo"), None, None));
        let ping = seen(&mut resolver, &event(58, true));
        assert_eq!((ping.protocol.as_str(), ping.destination.as_deref()), ("icmpv6", Some("fd00::1")));
        let unseen = seen(&mut resolver, &event(0, true));
        assert_eq!((unseen.protocol.as_str(), unseen.source.as_deref()), ("-", Some("192.168.77.200")));
        let arp = Event {
            reason: "drop_spoofed_arp",
            ..event(0, true)
        };
        let frame = seen(&mut resolver, &arp);
        assert_eq!((frame.protocol.as_str(), frame.source, frame.destination), ("-", None, None));
        assert!(resolver.line(&event(6, true)).drop);
    }

    #[tokio::test]
    async fn the_programs_tell_only_while_somebody_reads() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(&dir.path().join("ledger.redb")).unwrap());
        let (requests, mut asked) = mpsc::channel(1);
        let (hub, _rings) = Hub::new(ledger, requests, CancellationToken::new());
        // The reconcile loop's part: what was wanted when it got to it.
        let (told, mut switched) = mpsc::unbounded_channel();
        let loop_hub = hub.clone();
        tokio::spawn(async move {
            while let Some(Request::Watch(to)) = asked.recv().await {
                told.send(loop_hub.wanted()).unwrap();
                to.send(Ok(())).unwrap();
            }
        });
        let watch = |flows, drops| Some(Watch { flows, drops });
        let flows = hub.open(false, None).await.unwrap();
        assert_eq!(switched.recv().await, watch(true, false));
        let mut drops = Box::pin(hub.open(true, None).await.unwrap());
        assert_eq!(switched.recv().await, watch(true, true));
        let more = hub.open(true, Some(Id::from_bits(1))).await.unwrap();
        assert_eq!(switched.recv().await, watch(true, true));
        for told in [event(17, true), now(6, false), now(6, true)] {
            hub.live.send(Arc::new(Resolver::default().line(&told))).unwrap();
        }
        let Some(FlowLine::Drop(seen)) = drops.next().await else {
            panic!("the flow is for the other reader");
        };
        assert_eq!(seen.protocol, "tcp", "the datagram was dropped before anybody read");
        drop(flows);
        assert_eq!(switched.recv().await, watch(false, true));
        drop(drops);
        assert_eq!(switched.recv().await, watch(false, true));
        drop(more);
        assert_eq!(switched.recv().await, watch(false, false));
    }

    #[tokio::test]
    async fn a_slow_reader_learns_what_it_missed() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(&dir.path().join("ledger.redb")).unwrap());
        let (requests, mut asked) = mpsc::channel(1);
        let (hub, _rings) = Hub::new(ledger, requests, CancellationToken::new());
        tokio::spawn(async move {
            while let Some(Request::Watch(to)) = asked.recv().await {
                to.send(Ok(())).unwrap();
            }
        });
        let mut lines = Box::pin(hub.open(true, None).await.unwrap());
        for _ in 0..BEHIND + 3 {
            hub.live.send(Arc::new(Resolver::default().line(&now(6, true)))).unwrap();
        }
        assert_eq!(lines.next().await, Some(FlowLine::Lost { events: 3 }));
        assert!(matches!(lines.next().await, Some(FlowLine::Drop(_))));
        hub.stop.cancel();
        assert!(lines.take(2 * BEHIND).collect::<Vec<_>>().await.len() <= BEHIND);
    }
}
