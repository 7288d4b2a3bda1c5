//! The sessions of one host: loaded once for everybody who asks, and forgotten. What is ordered is answered, or known not to
//! be: no order leaves anything behind that somebody waits for.

use super::asked::{Asked, Gone, Refusal};
use super::lanes::Pace;
use super::model::Wanted;
use super::process::{HostProcess, NO_ORDERS, REAP};
use super::protocol::Order;
use super::quarantine::Suspect;
use crate::sessions::SessionKey;
use fnctl_core::ids::FunctionName;
use fnctl_core::inference::{InferenceError, InferenceErrorKind, ModelInfo, SessionId};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::Instant;

/// How long the smallest model may load before its host counts as hung. Callers give up at their own deadlines, long before
/// as a rule; this is for the load that goes on without them, and that the next caller waits for.
const LOAD: Duration = Duration::from_secs(60);
/// What a larger one has more: as slow a disk as anybody serves models from.
const LOAD_BYTES_PER_SECOND: u64 = 16 << 20;

/// A load that the host has been told of.
#[derive(Debug)]
pub(super) struct Loading {
    pub(super) since: Instant,
    /// How long it may take.
    pub(super) limit: Duration,
    pub(super) who: Suspect,
    pub(super) done: oneshot::Sender<Result<(ModelInfo, u64), Refusal>>,
}

/// A session in one host, by one load.
#[derive(Debug)]
pub(crate) struct Resident {
    /// What the host knows it by: never used twice, so that the end of one load cannot be taken for another's.
    pub(super) number: u64,
    pub(super) key: Arc<SessionKey>,
    pub(super) info: OnceCell<ModelInfo>,
    /// Set under the lock of `residents`, and only while this is what is in there: from then on who takes it out tells
    /// the host, until then who loads it does.
    pub(super) loaded: AtomicBool,
    /// Bytes that it took, as the host says.
    pub(super) bytes: AtomicU64,
    /// What its computes take.
    pub(super) pace: Pace,
}

impl HostProcess {
    /// Sends an order, and waits while the host does not take any.
    async fn order_in_turn(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| super::socket::send(socket.get_ref(), order, descriptors)) {
                Ok(sent) => return sent,
                Err(_would_block) => {}
            }
        }
    }

    /// Loads a model, once for everybody who asks. The load goes on if this future is dropped; one that did not have its
    /// turn by the caller's deadline is dropped with it.
    pub(crate) async fn load(
        self: &Arc<Self>,
        wanted: &Arc<Wanted>,
        function: &FunctionName,
        deadline: Instant,
    ) -> Asked<ModelInfo> {
        let resident = {
            let mut residents = self.residents.lock();
            // Looked at under the lock: who retires a session comes here afterwards to take it out.
            if wanted.is_retired() {
                return Ok(Err(not_loaded().into()));
            }
            let number = || self.loads.fetch_add(1, Ordering::Relaxed);
            residents
                .entry(wanted.id)
                .or_insert_with(|| {
                    Arc::new(Resident {
                        number: number(),
                        key: Arc::new(wanted.key.clone()),
                        info: OnceCell::new(),
                        loaded: AtomicBool::new(false),
                        bytes: AtomicU64::new(0),
                        pace: Pace::default(),
                    })
                })
                .clone()
        };
        if let Some(info) = resident.info.get() {
            return Ok(Ok(info.clone()));
        }
        self.inhabitants.lock().loads(&wanted.key, function);
        let (process, wanted) = (self.clone(), wanted.clone());
        let load = tokio::spawn(async move {
            let loaded = resident
                .info
                .get_or_try_init(|| process.load_now(&wanted, &resident, deadline))
                .await
                .cloned();
            match loaded {
                Ok(info) => Ok(Ok(info)),
                Err(None) => Err(Gone),
                Err(Some(refusal)) => {
                    forget_failed(&process.residents, wanted.id, resident);
                    Ok(Err(refusal))
                }
            }
        });
        load.await.unwrap_or(Err(Gone))
    }

    /// None stands for a host that is gone.
    async fn load_now(
        &self,
        wanted: &Wanted,
        resident: &Arc<Resident>,
        deadline: Instant,
    ) -> Result<ModelInfo, Option<Refusal>> {
        // Nobody waits for it any more, and others wait behind it.
        let late = |_elapsed| {
            let text = "the model was not loaded in time: others were loading; raise start_timeout";
            Some(crate::timed_out(text).into())
        };
        let turn = tokio::time::timeout_at(deadline, self.turns.acquire()).await;
        let _turn = turn.map_err(late)?.map_err(|_closed| None)?;
        let (done, loaded) = oneshot::channel();
        let loading = Loading {
            since: Instant::now(),
            limit: load_limit(wanted.file.length),
            who: Suspect::loading(&resident.key),
            done,
        };
        if self.is_idle() {
            *self.heard.lock() = loading.since;
        }
        self.loading.lock().insert(resident.number, loading);
        if self.dead.get().is_some() {
            self.loading.lock().clear();
            return Err(None);
        }
        let order = Order::Load {
            session: resident.number,
            length: wanted.file.length,
        };
        let model = [wanted.file.descriptor.as_fd()];
        if let Err(error) = self.order_in_turn(&order, &model).await {
            // The host knows nothing of it, so that nobody shall wait for its answer, or take its silence for a hang.
            self.loading.lock().remove(&resident.number);
            return Err(self.unsent(&error).await);
        }
        match loaded.await {
            Ok(Ok((info, bytes))) => {
                tracing::debug!(session = wanted.id.0, bytes, pid = self.pid, "model loaded");
                resident.bytes.store(bytes, Ordering::Relaxed);
                if self.settle(wanted.id, resident) {
                    return Ok(info);
                }
                // Taken out while it was loading: nobody else tells the host.
                let _ = self.order_unload(resident.number).await;
                Err(Some(not_loaded().into()))
            }
            Ok(Err(refusal)) => Err(Some(refusal)),
            Err(_gone) => Err(None),
        }
    }

    /// A load has come to its end in the host. Says whether it is still wanted.
    fn settle(&self, session: SessionId, resident: &Arc<Resident>) -> bool {
        let residents = self.residents.lock();
        let wanted = residents
            .get(&session)
            .is_some_and(|one| Arc::ptr_eq(one, resident));
        if wanted {
            resident.loaded.store(true, Ordering::Relaxed);
        }
        wanted
    }

    async fn order_unload(&self, session: u64) -> io::Result<()> {
        self.unloads.told(session);
        let told = self.order_in_turn(&Order::Unload { session }, &[]).await;
        if let Err(error) = &told {
            self.unloads.done(session);
            tracing::warn!(pid = self.pid, %error, "an inference host cannot be told to forget a session");
        }
        told
    }

    /// What an order that could not be sent comes to; none stands for a host that is gone.
    async fn unsent(&self, error: &io::Error) -> Option<Refusal> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
        if matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected) {
            // Its death is about to be found: whoever tries again at once would come to the same host.
            self.ended(Instant::now() + REAP).await;
            return None;
        }
        Some(
            InferenceError::new(
                InferenceErrorKind::Runtime,
                format!("the inference host cannot be told to load the model: {error}; try again"),
            )
            .into(),
        )
    }

    /// Forgets sessions. Says how many were here. A host that takes no orders is ended.
    pub(crate) async fn unload(&self, sessions: &[SessionId], now: Instant) -> usize {
        let mut count = 0;
        for session in sessions {
            let taken = self.residents.lock().remove(session);
            let Some(taken) = taken else { continue };
            count += 1;
            if !taken.loaded.load(Ordering::Relaxed) {
                // It is loading: who does that finds it gone, and tells the host then.
                continue;
            }
            let told = self.order_unload(taken.number);
            if self.is_alive() && tokio::time::timeout(self.patience, told).await.is_err() {
                self.finish(self.silent(NO_ORDERS));
            }
        }
        if count > 0 && self.is_empty() {
            *self.empty_since.lock() = now;
        }
        count
    }
}

/// How long a model of this many bytes may load before its host counts as hung.
fn load_limit(length: u64) -> Duration {
    LOAD + Duration::from_secs(length / LOAD_BYTES_PER_SECOND)
}

fn not_loaded() -> InferenceError {
    InferenceError::new(
        InferenceErrorKind::NotFound,
        "this session is not loaded any more",
    )
}

/// Sessions that are in a host, each by the one load.
pub(super) type Residents = Mutex<HashMap<SessionId, Arc<Resident>>>;

/// Forgets a load that failed, unless somebody else tries the same one: then the session stays, so that there is never a
/// second load of it at the same time.
fn forget_failed(residents: &Residents, session: SessionId, mine: Arc<Resident>) {
    let mut residents = residents.lock();
    let here = residents.get(&session);
    if !here.is_some_and(|one| Arc::ptr_eq(one, &mine)) {
        return;
    }
    drop(mine);
    let unwanted = here.is_some_and(|one| Arc::strong_count(one) == 1 && one.info.get().is_none());
    if unwanted {
        residents.remove(&session);
    }
}

#[cfg(test)]
mod tests {
    use super::super::death::Reason;
    use super::super::model::ModelFile;
    use super::super::process::{Ready, watched};
    use super::super::shared::{Layout, Shared};
    use super::*;
    use crate::config::Config;
    use rustix::event::EventfdFlags;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::fd::OwnedFd;

    fn resident() -> Arc<Resident> {
        let key = SessionKey {
            digest: fnctl_core::ids::Digest::of(b"model"),
            owner: None,
            isolation: fnctl_core::config::InferenceIsolation::Shared,
        };
        Arc::new(Resident {
            number: 1,
            key: Arc::new(key),
            info: OnceCell::new(),
            loaded: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            pace: Pace::default(),
        })
    }

    #[test]
    fn a_failed_load_stays_known_while_somebody_tries_again() {
        let residents = Residents::default();
        let id = SessionId(1);
        let one = resident();
        residents.lock().insert(id, one.clone());
        let other = one.clone();
        forget_failed(&residents, id, one);
        let known = residents.lock().get(&id).cloned().unwrap();
        assert!(Arc::ptr_eq(&other, &known), "the other one's load goes on");
        drop(known);
        forget_failed(&residents, id, other);
        assert!(residents.lock().is_empty());
        // Taken out meanwhile, and loaded anew: not this one's to forget.
        residents.lock().insert(id, resident());
        forget_failed(&residents, id, resident());
        assert_eq!(residents.lock().len(), 1);
    }

    /// A host that is nothing but this descriptor, where its socket would be.
    fn host(socket: OwnedFd) -> Arc<HostProcess> {
        let ready = Ready {
            pid: std::process::id(),
            confinement: String::new(),
            unconfined: Vec::new(),
            shared: Arc::new(Shared::create(Layout::new(1, 0)).unwrap()),
            socket: Arc::new(watched(socket).unwrap()),
        };
        Arc::new(HostProcess::new(ready, &Config::default()))
    }

    fn no_socket() -> OwnedFd {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    fn wanted() -> (Arc<Wanted>, FunctionName) {
        let file = ModelFile {
            descriptor: Arc::new(no_socket()),
            length: 1,
        };
        let function: FunctionName = "f".parse().unwrap();
        let key = resident().key.as_ref().clone();
        let wanted = Wanted::new(SessionId(7), key, function.clone(), file);
        (wanted, function)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// A guest with a short deadline used to leave one more of them in the queue with each request.
    #[tokio::test]
    async fn a_load_whose_turn_comes_too_late_is_not_made() {
        let host = host(no_socket());
        let (wanted, function) = wanted();
        let others = host
            .turns
            .acquire_many(u32::try_from(host.turns.available_permits()).unwrap());
        let others = others.await.unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        let loaded = tokio::time::timeout_at(soon(), host.load(&wanted, &function, deadline));
        let refusal = loaded
            .await
            .expect("in time")
            .expect("it lives")
            .unwrap_err();
        assert_eq!(refusal.error.kind, InferenceErrorKind::Timeout);
        drop(others);
        assert!(host.is_empty() && host.loading.lock().is_empty());
    }

    /// Its caller used to try the same host again and again, and the host to be ended for a load that it never heard of.
    #[tokio::test]
    async fn an_order_that_cannot_be_sent_is_an_error_and_leaves_no_load_behind() {
        let host = host(no_socket());
        let (wanted, function) = wanted();
        let loaded = host.load(&wanted, &function, soon()).await;
        let refusal = loaded.expect("it lives").expect_err("nobody was told");
        assert_eq!(refusal.error.kind, InferenceErrorKind::Runtime);
        assert!(refusal.error.message.contains("try again"));
        assert!(host.loading.lock().is_empty());
        assert!(host.is_empty());
    }

    #[tokio::test]
    async fn a_load_in_a_host_whose_end_is_not_yet_known_waits_for_that() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        drop(theirs);
        let host = host(ours);
        let (wanted, function) = wanted();
        let mut load = std::pin::pin!(host.load(&wanted, &function, soon()));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut load);
        assert!(early.await.is_err(), "it would be asked again at once");
        assert!(host.loading.lock().is_empty());
        host.dead.set(Reason::Killed).unwrap();
        host.gone.notify_waiters();
        assert_eq!(load.await.unwrap_err(), Gone);
    }

    /// An inference makes room, and its deadline passes before the host has taken the order.
    #[tokio::test]
    async fn an_order_to_forget_is_given_also_if_its_caller_gives_up() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        let host = host(ours);
        let one = resident();
        one.loaded.store(true, Ordering::Relaxed);
        host.residents.lock().insert(SessionId(7), one);
        while host.order(&Order::Ping(1), &[]).is_ok() {}
        {
            let hosts = vec![host.clone()];
            let forget = super::super::upkeep::forget_in(hosts, vec![SessionId(7)]);
            let soon = Duration::from_millis(50);
            let forgotten = tokio::time::timeout(soon, forget).await;
            assert!(forgotten.is_err(), "the host takes no orders");
        }
        assert!(host.is_empty());
        let deadline = soon();
        let mut buffer = Vec::new();
        loop {
            match super::super::socket::receive::<Order>(&theirs, &mut buffer) {
                Ok(Some((Order::Unload { session: 1 }, _))) => return,
                Ok(_) => {}
                Err(_nothing_yet) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
            assert!(Instant::now() < deadline, "it was never told");
        }
    }

    #[test]
    fn a_load_has_a_minute_and_what_its_size_takes() {
        assert_eq!(load_limit(9_000), Duration::from_secs(60));
        assert_eq!(load_limit(2 << 30), Duration::from_secs(60 + 128));
    }
}
