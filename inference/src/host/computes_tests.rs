//! Computes against hosts that lie: each is found out, and whoever waits is told that the host is gone.

use super::asked::{Asked, Gone};
use super::computes::{Computes, Work};
use super::lanes::{Lane, Pace};
use super::protocol::{self, Answer, OutputAt, Span, Submission};
use super::rings::{Answerer, Taker};
use super::shared::{INLINE, Layout, MAX_MESSAGE, Shared};
use crate::inputs::Resolved;
use crate::sessions::SessionKey;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{Computed, ModelInfo, Port, Tensor, TensorType};
use rustix::event::EventfdFlags;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn key(session: u64) -> Arc<SessionKey> {
    Arc::new(SessionKey {
        digest: Digest::of(&session.to_le_bytes()),
        owner: None,
        isolation: InferenceIsolation::Shared,
    })
}

fn caller() -> FunctionName {
    "caller".parse().unwrap()
}

fn port(name: &str) -> Port {
    Port {
        name: name.to_owned(),
        ty: TensorType::U8,
        shape: vec![-1],
    }
}

/// What a host makes of a submission; a second call gets what came of its first answer.
type Behaviour = fn(&Submission) -> Option<Answer>;

fn room(submission: &Submission) -> Span {
    match submission {
        Submission::Compute { room, .. } | Submission::Deliver { room, .. } => *room,
    }
}

fn output(at: Span, dimension: u32, ty: TensorType) -> Answer {
    Answer::Outputs(vec![OutputAt {
        ty,
        dimensions: vec![dimension],
        at,
    }])
}

fn part(at: Span, length: u64) -> Span {
    Span { length, ..at }
}

fn info(outputs: usize) -> ModelInfo {
    ModelInfo {
        inputs: vec![port("x")],
        outputs: (0..outputs)
            .map(|index| port(&format!("y{index}")))
            .collect(),
        unsupported_outputs: Vec::new(),
    }
}

fn inputs(length: u32) -> [Resolved; 1] {
    let tensor = Tensor {
        dimensions: vec![length],
        ty: TensorType::U8,
        data: vec![7; length as usize].into(),
    };
    [Resolved {
        index: 0,
        shape: vec![i64::from(length)],
        tensor,
    }]
}

/// One compute of three bytes in a host that behaves like this.
async fn one(behaviour: Behaviour) -> (Asked<Computed>, bool) {
    one_after(&AtomicUsize::new(0), behaviour).await
}

/// The same, after outputs that took `room` bytes.
async fn one_after(room: &AtomicUsize, behaviour: Behaviour) -> (Asked<Computed>, bool) {
    let layout = Layout::new(1, 1 << 20);
    let ours = Arc::new(Shared::create(layout).unwrap());
    let theirs = Shared::open(ours.descriptor().try_clone_to_owned().unwrap(), layout).unwrap();
    let computes = Computes::new(ours, 4, 1);
    std::thread::spawn(move || {
        let (taker, answerer) = (Taker::new(Lane::Bulk), Answerer::default());
        let signal = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut message = Vec::new();
        for _ in 0..2 {
            let slot = taker.take(&theirs);
            theirs.read_message(slot, &mut message).unwrap();
            let submission = protocol::decode(&message).unwrap();
            match behaviour(&submission) {
                Some(answer) => protocol::encode(&answer, MAX_MESSAGE, &mut message).unwrap(),
                None => message = vec![0xff; 100],
            }
            theirs.write_message(slot, &message).unwrap();
            answerer.push(&theirs, slot, signal.as_fd());
        }
    });
    let (info, inputs) = (info(1), inputs(3));
    let cancel = |_, _| {};
    let work = Work {
        session: 1,
        key: &key(1),
        pace: &Pace::default(),
        caller: &caller(),
        info: &info,
        room,
        inputs: &inputs,
        cancel: &cancel,
    };
    let collecting = async {
        loop {
            computes.collect();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let done = tokio::select! {
        done = computes.run(&work) => done,
        () = collecting => unreachable!("it collects for ever"),
    };
    let lied = computes.take_lie().is_some();
    if !lied {
        assert!(computes.is_idle(), "the slot is free again");
    }
    (done, lied)
}

#[tokio::test]
async fn an_honest_answer_is_taken() {
    let (done, lied) = one(|asked| Some(output(part(room(asked), 2), 2, TensorType::U8))).await;
    assert!(!lied);
    assert_eq!(done.unwrap().unwrap()[0].1.data.len(), 2);
}

#[tokio::test]
async fn outputs_that_need_room_get_it_once() {
    let (done, lied) = one(|asked| {
        Some(match asked {
            Submission::Compute { .. } => Answer::NeedsRoom(INLINE as u64 * 2),
            Submission::Deliver { room, .. } => {
                let size = u32::try_from(room.length).unwrap();
                output(*room, size, TensorType::U8)
            }
        })
    })
    .await;
    assert!(!lied);
    assert_eq!(done.unwrap().unwrap()[0].1.data.len(), INLINE * 2);
    // More than there is, is the model's fault and no lie.
    let (done, lied) = one(|_| Some(Answer::NeedsRoom(u64::MAX))).await;
    assert!(done.unwrap().is_err() && !lied);
}

#[tokio::test]
async fn one_large_answer_does_not_take_the_room_of_every_later_one() {
    let honest: Behaviour = |asked| Some(output(part(room(asked), 2), 2, TensorType::U8));
    // More than the whole heap.
    let room = AtomicUsize::new(8 << 20);
    let (done, lied) = one_after(&room, honest).await;
    assert!(done.unwrap().is_ok() && !lied);
    assert_eq!(room.load(Ordering::Relaxed), 7 << 20);
    // It grows at once.
    let room = AtomicUsize::new(8);
    one_after(&room, honest).await.0.unwrap().unwrap();
    assert_eq!(room.load(Ordering::Relaxed), 64);
}

#[tokio::test]
async fn every_lie_ends_the_host() {
    let lies: [Behaviour; 10] = [
        // Before its room, which may be another function's input.
        |asked| {
            let at = Span {
                offset: room(asked).offset - 64,
                length: 2,
            };
            Some(output(at, 2, TensorType::U8))
        },
        |asked| {
            let at = Span {
                offset: room(asked).offset + room(asked).length,
                length: 1,
            };
            Some(output(at, 1, TensorType::U8))
        },
        |_| {
            let at = Span {
                offset: u64::MAX,
                length: 2,
            };
            Some(output(at, 2, TensorType::U8))
        },
        |asked| Some(output(part(room(asked), u64::MAX), 2, TensorType::U8)),
        |asked| Some(output(part(room(asked), 2), u32::MAX, TensorType::U8)),
        |asked| Some(output(part(room(asked), 2), 1, TensorType::Fp16)),
        |_| Some(Answer::Outputs(Vec::new())),
        |_| Some(Answer::NeedsRoom(1)),
        |_| Some(Answer::NeedsRoom(INLINE as u64 * 2)),
        |_| None,
    ];
    for (index, lie) in lies.into_iter().enumerate() {
        let (done, lied) = one(lie).await;
        assert!(matches!(done, Err(Gone)) && lied, "lie {index}");
    }
}

#[test]
fn outputs_come_one_after_another() {
    let layout = Layout::new(1, 1 << 20);
    let computes = Computes::new(Arc::new(Shared::create(layout).unwrap()), 4, 2);
    let info = info(2);
    let (room, length) = (layout.inline_offset(0), INLINE);
    let at = |offset: usize, length: u32| OutputAt {
        ty: TensorType::U8,
        dimensions: vec![length],
        at: Span {
            offset: offset as u64,
            length: u64::from(length),
        },
    };
    let whole = u32::try_from(length).unwrap();
    for lie in [
        [at(room, whole), at(room, whole)],
        [at(room, 65), at(room + 64, 1)],
        [at(room + 64, 1), at(room, 1)],
    ] {
        assert!(computes.outputs(&info, &lie, (room, length)).is_err());
    }
    for honest in [
        [at(room, whole), at(room + length, 0)],
        [at(room, 0), at(room, whole)],
        [at(room, 3), at(room + 64, 1)],
    ] {
        assert!(computes.outputs(&info, &honest, (room, length)).is_ok());
    }
}

#[tokio::test]
async fn a_cancelled_run_that_waits_for_its_turn_is_no_hang() {
    let layout = Layout::new(2, 1 << 20);
    let computes = Computes::new(Arc::new(Shared::create(layout).unwrap()), 4, 2);
    let (info, inputs) = (info(1), inputs(3));
    let (room, cancel) = (AtomicUsize::new(0), |_, _| {});
    // A host that takes nothing, and callers that give up.
    for session in 1..=4 {
        let work = Work {
            session,
            key: &key(session),
            pace: &Pace::default(),
            caller: &caller(),
            info: &info,
            room: &room,
            inputs: &inputs,
            cancel: &cancel,
        };
        assert!(futures::poll!(std::pin::pin!(computes.run(&work))).is_pending());
    }
    let later = tokio::time::Instant::now() + Duration::from_secs(60);
    computes.excuse_queued(2, later);
    let mut runs = computes.in_flight();
    runs.sort_by_key(|run| run.run);
    let excused: Vec<_> = runs
        .iter()
        .map(|run| (run.run, run.cancelled == Some(later)))
        .collect();
    assert_eq!(excused, [(1, false), (2, false), (3, true), (4, true)]);
}

#[tokio::test]
async fn who_waits_in_one_lane_does_not_wait_for_the_other() {
    let layout = Layout::new(2, 1 << 20);
    let computes = Computes::new(Arc::new(Shared::create(layout).unwrap()), 4, 1);
    let (info, inputs) = (info(1), inputs(3));
    let (room, cancel) = (AtomicUsize::new(0), |_, _| {});
    let (slow, fast) = (Pace::default(), Pace::default());
    slow.add(u32::MAX);
    fast.add(1_000);
    // A host of one thread for each lane that takes nothing, and callers that give up.
    for (session, pace) in [(1, &slow), (2, &fast), (3, &slow), (4, &fast)] {
        let work = Work {
            session,
            key: &key(session),
            pace,
            caller: &caller(),
            info: &info,
            room: &room,
            inputs: &inputs,
            cancel: &cancel,
        };
        assert!(futures::poll!(std::pin::pin!(computes.run(&work))).is_pending());
    }
    let later = tokio::time::Instant::now() + Duration::from_secs(60);
    computes.excuse_queued(1, later);
    let mut runs = computes.in_flight();
    runs.sort_by_key(|run| run.run);
    let excused: Vec<_> = runs
        .iter()
        .map(|run| (run.run, run.cancelled == Some(later)))
        .collect();
    // The second is the first of its lane, and so has begun.
    assert_eq!(excused, [(1, false), (2, false), (3, true), (4, true)]);
}

/// A caller gives up while its outputs wait for room: the host hears of it, and keeps them no longer.
#[tokio::test]
async fn outputs_that_nobody_fetches_are_given_up() {
    let layout = Layout::new(1, 1 << 20);
    let ours = Arc::new(Shared::create(layout).unwrap());
    let theirs = Shared::open(ours.descriptor().try_clone_to_owned().unwrap(), layout).unwrap();
    let computes = Computes::new(ours, 4, 1);
    let (info, inputs, room) = (info(1), inputs(3), AtomicUsize::new(0));
    let cancelled = parking_lot::Mutex::new(Vec::new());
    let cancel = |slot, run| cancelled.lock().push((slot, run));
    let work = Work {
        session: 1,
        key: &key(1),
        pace: &Pace::default(),
        caller: &caller(),
        info: &info,
        room: &room,
        inputs: &inputs,
        cancel: &cancel,
    };
    // Somebody else has all of the heap.
    let hog = computes.arena_for_tests().take(1 << 20).unwrap();
    let run = computes.run(&work);
    {
        let mut run = std::pin::pin!(run);
        assert!(futures::poll!(&mut run).is_pending());
        let slot = Taker::new(Lane::Bulk).take(&theirs);
        let mut message = Vec::new();
        protocol::encode(
            &Answer::NeedsRoom(INLINE as u64 * 2),
            MAX_MESSAGE,
            &mut message,
        )
        .unwrap();
        theirs.write_message(slot, &message).unwrap();
        let signal = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        Answerer::default().push(&theirs, slot, signal.as_fd());
        computes.collect();
        assert!(futures::poll!(&mut run).is_pending(), "it waits for room");
        assert!(cancelled.lock().is_empty());
    }
    assert_eq!(*cancelled.lock(), [(0, 1)]);
    assert!(computes.is_idle());
    computes.arena_for_tests().give_back(hog, 1 << 20);
    assert_eq!(computes.taken(), 0);
}

/// What other callers' outputs took before is no reason to wait for as much.
#[tokio::test]
async fn who_can_do_with_less_room_does_not_wait_for_more() {
    for (free, taken) in [(768 << 10, true), (256 << 10, false)] {
        let layout = Layout::new(1, 1 << 20);
        let computes = Computes::new(Arc::new(Shared::create(layout).unwrap()), 4, 1);
        let (info, inputs) = (info(1), inputs(3));
        let room = AtomicUsize::new(512 << 10);
        let cancel = |_, _| {};
        let work = Work {
            session: 1,
            key: &key(1),
            pace: &Pace::default(),
            caller: &caller(),
            info: &info,
            room: &room,
            inputs: &inputs,
            cancel: &cancel,
        };
        let hog = (1 << 20) - free;
        computes.arena_for_tests().take(hog).unwrap();
        let mut run = std::pin::pin!(computes.run(&work));
        assert!(futures::poll!(&mut run).is_pending());
        assert_eq!(computes.in_flight().len(), 1, "it is in the host");
        assert_eq!(computes.taken() > hog as u64, taken);
    }
}
