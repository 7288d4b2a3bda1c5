//! Callers: they ask, wait, read or leave as the plan says, and look at what they are told.

use super::drive::{Platform, other_alias};
use super::kept;
use super::plan::{Call, Reads, Target};
use super::sandboxes::Planned;
use super::world::{Answer, Asked, Outlook, World, seats};
use fnctl_core::invocation::StartKind;
use fnctl_core::ports::{FunctionStore, Invoker};
use fnctl_core::trace::Trace as Spans;
use fnctl_core::version::{Selector, Version};
use fnctl_core::{ErrorKind, Failure, Invocation, RequestId};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

impl Platform {
    pub(super) fn call(&self, call: &Call) {
        let name = self.name(call.function);
        let id = RequestId::from_caller(&format!("call-{}", call.id)).unwrap();
        let selector = match call.target {
            Target::Live | Target::Gone => Selector::Live,
            Target::Latest => Selector::Latest,
            Target::Alias => Selector::Alias(other_alias()),
            Target::Back(back) => Selector::Number(self.back(call.function, back)),
        };
        let gone = (call.target == Target::Gone)
            .then(|| self.store.gone(&name))
            .flatten();
        let version = gone.or_else(|| self.store.resolve(&name, &selector, id.draw()));
        let Some(version) = version else {
            return;
        };
        let mut request = http::Request::new(fnctl_core::empty());
        if call.head {
            *request.method_mut() = http::Method::HEAD;
        }
        let call = Arc::new(call.clone());
        request.extensions_mut().insert(Planned(call.clone()));
        let invocation = invocation(&version, call.id, request);
        let this = self.clone();
        self.outside
            .spawn("caller", async move { this.caller(call, invocation).await });
    }

    async fn caller(&self, call: Arc<Call>, invocation: Invocation) {
        let (world, id) = (&self.world, call.id);
        let version = invocation.version.clone();
        world.log(|| format!("call {id} of {}", version.key()));
        {
            let mut books = world.books.lock();
            books.unwanted.remove(&version.key());
            books.versions.insert(version.key(), version.clone());
        }
        let asked = Asked {
            version: version.key(),
            at: Instant::now(),
            deadline: invocation.deadline,
            outlook: outlook(world, &version, invocation.deadline),
            begun_in: None,
            unbegun_left: call.run.unbegun,
            handed_back: 0,
            begun: 0,
            sent: None,
            completed: false,
            left: false,
            over: false,
        };
        world.books.lock().calls.insert(id, asked);
        let asked = self.scheduler.invoke(invocation);
        let answer = match call.leaves {
            None => asked.await,
            Some(after) => tokio::select! {
                biased;
                answer = asked => answer,
                () = tokio::time::sleep(Duration::from_millis(after)) => {
                    world.log(|| format!("caller {id} leaves"));
                    over(world, id);
                    left(world, id);
                    return;
                }
            },
        };
        over(world, id);
        match answer {
            Ok(reply) => {
                let from = reply.response.headers().get("x-call").cloned();
                let right = from.is_some_and(|from| from.as_bytes() == id.to_string().as_bytes());
                world.require("answer", right, || {
                    format!("call {id} gets another's answer")
                });
                answered(world, &call, Answer::Response);
                started(world, &call, reply.start, seats(&version) > 1);
                read(world, &call, reply.response.into_body()).await;
            }
            Err(refused) => {
                answered(world, &call, Answer::Failure(refused.failure.kind));
                not_served(world, id, &refused.failure);
            }
        }
    }
}

/// What is to become of a call of `version` that is made now, by the function's counts alone.
fn outlook(world: &World, version: &Version, deadline: Instant) -> Outlook {
    let Some(audit) = world.audit() else {
        return Outlook::Unknown;
    };
    let mut lanes = audit.lanes.iter();
    let Some(lane) = lanes.find(|lane| lane.function == version.function) else {
        let books = world.books.lock();
        let live = books.ledger.live(&version.function);
        let config = live.map_or(&version.config, |live| &live.config);
        return match kept::limit(config) {
            0 => Outlook::Off,
            _ => Outlook::Taken,
        };
    };
    if lane.limit == 0 {
        return Outlook::Off;
    }
    if lane.permits < lane.limit && lane.queued == 0 {
        return Outlook::Taken;
    }
    if lane.queued >= lane.max_queue {
        return Outlook::Refused;
    }
    // Its turn comes when those before it and itself have had their places for as long as they are had on average.
    let Some(holds) = lane.holds else {
        return Outlook::Taken;
    };
    let wait = holds.as_nanos() * (lane.queued as u128 + 1) / lane.limit as u128;
    let patience = version.config.queue_timeout.duration().as_nanos();
    let remaining = deadline.saturating_duration_since(Instant::now());
    let remaining = remaining.as_nanos();
    let answer = wait + holds.as_nanos();
    let near = |a: u128, b: u128| a.abs_diff(b) < 1_000;
    if near(wait, patience) || near(answer, remaining) {
        Outlook::Unknown
    } else if wait >= patience || answer > remaining {
        Outlook::Refused
    } else {
        Outlook::Taken
    }
}

/// Who is refused is refused at once, with cause, without having run, and is told when to come again.
fn not_served(world: &World, id: u64, failure: &Failure) {
    let mut books = world.books.lock();
    let Some(asked) = books.calls.get(&id) else {
        return;
    };
    let (outlook, begun, waited) = (asked.outlook, asked.begun, asked.at.elapsed());
    let (kind, retry) = (failure.kind, failure.retry_after);
    let refused = kind == ErrorKind::Throttled;
    books.require("refused", !refused || waited.is_zero(), || {
        format!("call {id} is refused after {waited:?}")
    });
    let expected = match outlook {
        Outlook::Unknown => None,
        Outlook::Taken => Some(false),
        Outlook::Refused | Outlook::Off => Some(true),
    };
    let draining = kind == ErrorKind::Draining;
    let right = draining || expected.is_none_or(|expected| expected == refused);
    books.require("refused", right, || {
        format!("call {id} is answered {kind}, it was to be {outlook:?}")
    });
    let unserved = matches!(
        kind,
        ErrorKind::Throttled
            | ErrorKind::QueueTimeout
            | ErrorKind::Overloaded
            | ErrorKind::NodeFull
            | ErrorKind::Draining
    );
    books.require("refused", !unserved || begun == 0, || {
        format!("call {id} is answered {kind}, and has run")
    });
    let off = refused && outlook == Outlook::Off;
    // The fake worker's own words about its room have none.
    let told = retry.is_some() != off || kind == ErrorKind::NodeFull;
    books.require("retry after", !unserved || told, || {
        format!("call {id} is answered {kind}, and told to come again in {retry:?}")
    });
}

/// A start is called what it was for the caller.
fn started(world: &World, call: &Call, kind: StartKind, shared: bool) {
    let mut books = world.books.lock();
    let id = call.id;
    let Some(asked) = books.calls.get(&id) else {
        return;
    };
    let refusal = matches!(asked.outlook, Outlook::Refused | Outlook::Off);
    let outlook = asked.outlook;
    let (at, begun_in) = (asked.at, asked.begun_in);
    let begun_in = begun_in.filter(|_| call.run.unbegun == 0 && asked.handed_back == 0);
    books.require("refused", !refusal, || {
        format!("call {id} has a response, it was to be {outlook:?}")
    });
    // Of one that was begun elsewhere again, it is the first instance that is told of.
    let Some((uses, made)) = begun_in else {
        return;
    };
    // Others may have begun in it between the time when the seat was given and that when this one began.
    let right = match kind {
        StartKind::Warm => uses > 0,
        StartKind::Prewarmed => uses == 0 || shared,
        StartKind::Cold => (uses == 0 || shared) && made >= at,
    };
    books.require("start kind", right, || {
        format!("call {id} is told {kind:?} of a sandbox that served {uses} before")
    });
}

pub(super) fn invocation(
    version: &Arc<Version>,
    id: u64,
    request: http::Request<fnctl_core::Body>,
) -> Invocation {
    let received = Instant::now();
    Invocation {
        version: version.clone(),
        request_id: RequestId::from_caller(&format!("call-{id}")).unwrap(),
        request,
        received,
        deadline: received + version.config.timeout.duration(),
        cancelled: CancellationToken::new(),
        trace: Spans::none(),
        report: false,
    }
}

fn left(world: &World, id: u64) {
    if let Some(asked) = world.books.lock().calls.get_mut(&id) {
        asked.left = true;
    }
}

fn over(world: &World, id: u64) {
    if let Some(asked) = world.books.lock().calls.get_mut(&id) {
        asked.over = true;
    }
}

/// The answer is the guest's, if it gave one; and a defect of the platform's only where one was planned.
fn answered(world: &World, call: &Call, answer: Answer) {
    let mut books = world.books.lock();
    let id = call.id;
    books.log(format!("call {id} is answered: {answer:?}"));
    let Some(asked) = books.calls.get(&id) else {
        return;
    };
    let (sent, begun, handed_back) = (asked.sent, asked.begun, asked.handed_back);
    // One that no guest has seen is tried elsewhere, eight times where instances are shared, and once where not.
    let trapped = answer == Answer::Failure(ErrorKind::Trap) && sent.is_none();
    books.require("tried again", !trapped || handed_back > 8, || {
        format!("call {id} is given up after {handed_back} sandboxes that did not begin it")
    });
    if let Some(sent) = sent {
        books.require("answer", sent == answer, || {
            format!("call {id} is answered {answer:?}, its guest said {sent:?}")
        });
    }
    let internal = answer == Answer::Failure(ErrorKind::Internal);
    let planned = books.planned_panics > 0 || call.run.unbegun > 1 || begun > 0;
    books.require("answer", !internal || planned, || {
        format!("call {id} is answered with a defect that nobody planned")
    });
    books.require(
        "answer",
        sent.is_some() || answer != Answer::Response,
        || format!("call {id} has a response that no guest gave"),
    );
}

async fn read(world: &World, call: &Call, mut body: fnctl_core::Body) {
    let most = match call.reads {
        Reads::All => u64::MAX,
        Reads::Some(chunks) => chunks,
        Reads::Late(after) => {
            tokio::time::sleep(Duration::from_millis(after)).await;
            u64::MAX
        }
    };
    let mut chunks = 0;
    while chunks < most {
        match body.frame().await {
            Some(Ok(_)) => chunks += 1,
            Some(Err(_)) | None => break,
        }
    }
    drop(body);
    let id = call.id;
    if chunks < call.run.chunks && !call.head {
        left(world, id);
    }
    let mut books = world.books.lock();
    books.log(format!("caller {id} has read {chunks} chunks"));
    let completed = books.calls.get(&id).is_some_and(|asked| asked.completed);
    let short = completed && most == u64::MAX && !call.head && chunks != call.run.chunks;
    books.require("answer", !short, || {
        format!(
            "call {id} got {chunks} of {} chunks of a complete answer",
            call.run.chunks
        )
    });
}
