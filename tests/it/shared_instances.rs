//! Instances of WASI 0.3 components that serve several requests at once.

use fnctl_tests::{Deployment, Exchange, Reply, TestPlatform, eventually, file, onnx, probe3};
use futures::future::join_all;
use http::Method;
use serde_json::Value;
use std::future::Future;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A platform with the probe, of which one instance serves `seats` requests at once.
async fn platform_with(
    seats: u32,
    configure: impl FnOnce(Deployment) -> Deployment,
) -> TestPlatform {
    let platform = TestPlatform::start().await;
    let probe = Deployment::new("probe", probe3()).with("instance_concurrency", seats);
    platform.deploy(configure(probe)).await;
    platform
}

async fn instances(platform: &TestPlatform) -> Vec<Value> {
    let details = platform.client.get("/api/v1/functions/probe").await.ok();
    let details = details.json();
    details["instances"].as_array().cloned().unwrap_or_default()
}

/// Waits until as many requests are in the guests.
async fn busy_with(platform: &TestPlatform, wanted: &str) {
    for _ in 0..400 {
        let told = instances(platform).await;
        let whys = told.iter().filter_map(|instance| instance["why"].as_str());
        if whys.into_iter().any(|why| why.starts_with(wanted)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never {wanted}: {:?}", instances(platform).await);
}

fn call(platform: &TestPlatform, path: &str) -> JoinHandle<Reply> {
    let client = platform.client.clone();
    let path = format!("/fn/probe/{path}");
    tokio::spawn(async move { client.get(&path).await })
}

fn outcome(reply: &Reply) -> (u16, String) {
    (reply.status.as_u16(), reply.code())
}

/// The instance that failed is gone, and the next caller finds a fresh one.
async fn is_fresh(platform: &TestPlatform) {
    let next = platform.call("probe/count").await.ok();
    assert_eq!((next.start(), next.text().as_str()), ("cold", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_requests_that_wait_share_one_instance() {
    let platform = platform_with(8, |probe| probe.with("max_instances", 1)).await;
    platform.call("probe/count").await.ok();
    let since = Instant::now();
    let calls: Vec<_> = (0..8).map(|_| call(&platform, "sleep?1000")).collect();
    busy_with(&platform, "busy with 8 of 8").await;
    assert_eq!(instances(&platform).await.len(), 1);
    for reply in join_all(calls).await {
        let reply = reply.unwrap().ok();
        assert_eq!((reply.text().as_str(), reply.start()), ("slept\n", "warm"));
    }
    let took = since.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?} for eight seconds");
    platform.settle().await;
    let left = instances(&platform).await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(
        (&left[0]["state"], &left[0]["uses"]),
        (&"idle".into(), &9.into())
    );
    assert_eq!(platform.call("probe/count").await.ok().text(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_instances_are_started_than_the_seats_need() {
    let platform = platform_with(4, |probe| probe).await;
    let calls: Vec<_> = (0..12).map(|_| call(&platform, "sleep?1500")).collect();
    busy_with(&platform, "busy with 4 of 4").await;
    let replies = join_all(calls).await;
    assert!(
        replies
            .into_iter()
            .all(|reply| reply.unwrap().status == 200)
    );
    let started = instances(&platform).await;
    assert_eq!(started.len(), 3, "{started:?}");
    let uses: Vec<_> = started
        .iter()
        .filter_map(|it| it["uses"].as_u64())
        .collect();
    assert_eq!(uses.iter().sum::<u64>(), 12, "{uses:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_instance_serves_more_than_it_may_in_its_life() {
    let platform = platform_with(4, |probe| probe.with("max_uses", 3)).await;
    let calls: Vec<_> = (0..20).map(|_| call(&platform, "count")).collect();
    for reply in join_all(calls).await {
        let count: u32 = reply.unwrap().ok().text().parse().unwrap();
        assert!(count <= 3, "{count}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_at_the_same_time() {
    let platform = platform_with(8, |probe| probe.with("max_instances", 1)).await;
    let mut exchanges = Vec::new();
    for _ in 0..4 {
        let line = "POST /fn/probe/echo-stream HTTP/1.1";
        exchanges.push(Exchange::open(&platform, line).await);
    }
    for round in 0..10 {
        for (number, exchange) in exchanges.iter_mut().enumerate() {
            exchange
                .send(format!("{round} of {number}\n").as_bytes())
                .await;
        }
        for (number, exchange) in exchanges.iter_mut().enumerate().rev() {
            assert_eq!(exchange.line().await, format!("{round} of {number}"));
        }
    }
    busy_with(&platform, "busy with 4 of 8").await;
    assert_eq!(instances(&platform).await.len(), 1);
    let body: Vec<u8> = (0..4usize << 20)
        .map(|i| (i / 4096).to_le_bytes()[0])
        .collect();
    let large = (0..3).map(|_| platform.client.post("/fn/probe/echo-stream", body.clone()));
    for reply in join_all(large).await {
        let reply = reply.ok();
        assert!(reply.complete && reply.body == body);
    }
    for exchange in exchanges {
        exchange.finish().await;
    }
    platform.settle().await;
    assert_eq!(instances(&platform).await[0]["uses"], 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_fails_its_own_request_and_the_others_finish() {
    let platform = platform_with(8, |probe| probe.with("timeout", "2s")).await;
    platform.call("probe/count").await.ok();
    let late = call(&platform, "hang");
    busy_with(&platform, "busy with 1 of 8").await;
    // Half of its time.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    // It ends after the other's deadline, and before its own.
    let fine = call(&platform, "sleep?1500");
    busy_with(&platform, "busy with 2 of 8").await;
    assert_eq!(outcome(&late.await.unwrap()), (504, "timeout".into()));
    // Whoever comes now gets another instance, while the old one is not done.
    is_fresh(&platform).await;
    assert!(!fine.is_finished());
    assert_eq!(fine.await.unwrap().ok().text(), "slept\n");
    platform.settle().await;
    assert_eq!(platform.call("probe/count").await.ok().text(), "2");
    assert_eq!(instances(&platform).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_fails_those_in_flight_and_nobody_else() {
    let platform = platform_with(8, |probe| probe.with("max_instances", 2)).await;
    platform
        .deploy(Deployment::new("other", probe3()).with("instance_concurrency", 8))
        .await;
    platform.call("probe/count").await.ok();
    let other = platform.call("other/sleep?1500");
    let calls: Vec<_> = (0..3).map(|_| call(&platform, "sleep?10000")).collect();
    let hurt = async {
        busy_with(&platform, "busy with 3 of 8").await;
        let trapped = platform.call("probe/trap").await;
        let mut replies = vec![trapped];
        for reply in join_all(calls).await {
            replies.push(reply.unwrap());
        }
        for reply in replies {
            assert_eq!(outcome(&reply), (502, "trap".into()));
            let text = reply.text();
            assert!(text.contains("while it served 4 requests"), "{text}");
        }
        is_fresh(&platform).await;
    };
    let (other, ()) = tokio::join!(other, hurt);
    assert_eq!(other.ok().text(), "slept\n");
    // One that is alone is told what it was told before.
    let alone = platform.call("probe/trap").await;
    assert!(
        !alone.text().contains("requests, and all"),
        "{}",
        alone.text()
    );
    is_fresh(&platform).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_spins_past_its_deadline_does_not_hold_the_others_for_long() {
    let platform = platform_with(8, |probe| probe.with("timeout", "2s").with("cpu", "60s")).await;
    platform.call("probe/count").await.ok();
    let spinning = call(&platform, "spin");
    busy_with(&platform, "busy with 1 of 8").await;
    // Half of its time.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let held = call(&platform, "sleep?10");
    assert_eq!(outcome(&spinning.await.unwrap()), (504, "timeout".into()));
    // The guest had no time to see it: it is served by another instance, long before its own deadline.
    let held = held.await.unwrap().ok();
    assert_eq!(held.text(), "slept\n");
    eventually("nothing is left", || platform.platform().in_flight() == 0).await;
    assert_eq!(platform.call("probe/count").await.ok().text(), "1");
    assert_eq!(instances(&platform).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_in_a_call_of_wasi_0_2_holds_nobody_past_its_deadline_whom_the_guest_has_not_seen()
 {
    let platform = platform_with(8, |probe| probe.with("timeout", "3s")).await;
    platform.call("probe/count").await.ok();
    let blocking = call(&platform, "block?60000");
    busy_with(&platform, "busy with 1 of 8").await;
    // Half of its time.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let held = call(&platform, "sleep?10");
    busy_with(&platform, "busy with 2 of 8").await;
    // One whose caller leaves before the guest has seen it does not end the instance.
    let leaving = call(&platform, "sleep?10");
    busy_with(&platform, "busy with 3 of 8").await;
    leaving.abort();
    busy_with(&platform, "busy with 2 of 8").await;
    assert_eq!(instances(&platform).await.len(), 1);
    let since = Instant::now();
    assert!(!held.is_finished());
    assert_eq!(outcome(&blocking.await.unwrap()), (504, "timeout".into()));
    assert_eq!(held.await.unwrap().ok().text(), "slept\n");
    // Its own deadline would have been at three seconds.
    assert!(since.elapsed() < Duration::from_millis(2800), "{since:?}");
    eventually("nothing is left", || platform.platform().in_flight() == 0).await;
    assert_eq!(platform.call("probe/count").await.ok().text(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_in_flight_spend_one_account_of_cpu_time() {
    let platform =
        platform_with(8, |probe| probe.with("timeout", "20s").with("cpu", "300ms")).await;
    platform.call("probe/count").await.ok();
    let waiting = call(&platform, "hang");
    busy_with(&platform, "busy with 1 of 8").await;
    let since = Instant::now();
    assert_eq!(
        outcome(&platform.call("probe/spin").await),
        (502, "cpu_exceeded".into())
    );
    assert_eq!(
        outcome(&waiting.await.unwrap()),
        (502, "cpu_exceeded".into())
    );
    assert!(since.elapsed() < Duration::from_secs(10));
    is_fresh(&platform).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_does_not_take_the_others_with_it() {
    let platform = platform_with(8, |probe| probe).await;
    platform.call("probe/count").await.ok();
    let leaving = call(&platform, "hang");
    let staying = call(&platform, "sleep?1500");
    busy_with(&platform, "busy with 2 of 8").await;
    leaving.abort();
    busy_with(&platform, "busy with 1 of 8").await;
    is_fresh(&platform).await;
    assert_eq!(staying.await.unwrap().ok().text(), "slept\n");
    platform.settle().await;
    // A reader that leaves in the middle of a body is noticed by the guest itself: its instance serves on.
    let leaving = call(&platform, "endless");
    busy_with(&platform, "busy with 1 of 8").await;
    // The caller is somewhere in the body by then; nothing tells where.
    tokio::time::sleep(Duration::from_millis(200)).await;
    leaving.abort();
    eventually("the guest is done", || platform.platform().in_flight() == 0).await;
    assert_eq!(platform.call("probe/count").await.ok().text(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_a_body_beside_others_ends_the_instance_for_new_ones() {
    let platform = platform_with(8, |probe| probe).await;
    platform.call("probe/count").await.ok();
    let staying = call(&platform, "sleep?2500");
    let leaving = call(&platform, "endless");
    busy_with(&platform, "busy with 2 of 8").await;
    // The caller is somewhere in the body by then; nothing tells where.
    tokio::time::sleep(Duration::from_millis(200)).await;
    leaving.abort();
    // Whether the guest still writes is not known while another is in flight.
    busy_with(&platform, "busy with 1 of 8").await;
    is_fresh(&platform).await;
    assert!(!staying.is_finished());
    assert_eq!(staying.await.unwrap().ok().text(), "slept\n");
    platform.settle().await;
    assert_eq!(instances(&platform).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_row_of_requests_has_each_its_own_lines() {
    let platform = platform_with(8, |probe| probe.with("max_instances", 1)).await;
    let holding = call(&platform, "sleep?8000");
    busy_with(&platform, "busy with 1 of 8").await;
    // More than are remembered, of which the guest's tasks take the numbers of earlier ones.
    for round in 0..50 {
        let ids: Vec<_> = (0..4).map(|n| format!("row-{round}-{n}.")).collect();
        let sent = ids.iter().map(async |id| {
            let headers = [("x-request-id", id.as_str())];
            let client = &platform.client;
            let reply = client.send(Method::GET, "/fn/probe/log", &headers, "");
            reply.await.ok()
        });
        join_all(sent).await;
    }
    assert!(!holding.is_finished());
    holding.abort();
    let lines = platform.guest_lines();
    for round in 0..50 {
        for number in 0..4 {
            let id = format!("row-{round}-{number}.");
            let own = lines.iter().filter(|line| line.contains(&id)).count();
            assert_eq!(own, 2, "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_those_of_their_own_request() {
    let platform = platform_with(8, |probe| probe.with("max_instances", 1)).await;
    let holding = call(&platform, "sleep?2000");
    busy_with(&platform, "busy with 1 of 8").await;
    let with_id = async |path: &str, id: &str| {
        let headers = [("x-request-id", id)];
        let path = format!("/fn/probe/{path}");
        platform
            .client
            .send(Method::GET, &path, &headers, "")
            .await
            .ok();
    };
    // The work after the answer waits, so that the two of them take turns.
    tokio::join!(
        with_id("after", "shared-after-a"),
        with_id("after", "shared-after-b"),
        with_id("log", "shared-print"),
        with_id("log3", "shared-log3"),
    );
    for (id, expected) in [
        ("shared-after-a", "after the answer"),
        ("shared-after-b", "after the answer"),
        ("shared-print", "a line of stderr"),
        ("shared-print", "a line of stdout"),
        ("shared-log3", "a line of stdout 0.3"),
    ] {
        eventually(expected, || {
            let lines = platform.guest_lines();
            let found = lines
                .iter()
                .filter(|line| line.contains(id) && line.contains(expected));
            found.count() == 1
        })
        .await;
    }
    holding.await.unwrap().ok();
    assert_eq!(instances(&platform).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn inference_works_in_a_shared_instance() {
    let model = file("examples/fraud/models/fraud_mlp16.onnx");
    let platform = platform_with(8, |probe| {
        probe.model("fraud", model).with("max_instances", 1)
    })
    .await;
    let holding = call(&platform, "sleep?2000");
    busy_with(&platform, "busy with 1 of 8").await;
    let tensor = format!("features;f32;1x16;{}", ["0.5"; 16].join(","));
    let path = "/fn/probe/nn/run?model=fraud";
    let replies = join_all((0..6).map(|_| platform.client.post(path, tensor.clone()))).await;
    let answers: Vec<_> = replies.into_iter().map(|reply| reply.ok().text()).collect();
    assert!(answers[0].contains("fraud_probability"), "{answers:?}");
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
    holding.await.unwrap().ok();
    assert_eq!(instances(&platform).await.len(), 1);
}

/// The sine of the sine and so on, of as many numbers as it is given: four million take seconds.
fn slow() -> Vec<u8> {
    let names: Vec<_> = (0..=400).map(|number| format!("n{number}")).collect();
    let mut parts = vec![onnx::node("Neg", &["x"], &names[0])];
    for pair in names.windows(2) {
        parts.push(onnx::node("Sin", &[pair[0].as_str()], &pair[1]));
    }
    parts.extend([
        onnx::node("ReduceSum", &[names[400].as_str()], "y"),
        onnx::input(&onnx::open_value("x", onnx::element::F32)),
        onnx::output(&onnx::open_value("y", onnx::element::F32)),
    ]);
    onnx::model(&parts)
}

/// A platform with a model that computes for a good while.
async fn platform_that_computes() -> TestPlatform {
    let platform = platform_with(8, |probe| {
        probe.model("slow", slow()).with("start_timeout", "60s")
    })
    .await;
    platform.call("probe/count").await.ok();
    platform
}

fn compute(platform: &TestPlatform) -> JoinHandle<Reply> {
    let client = platform.client.clone();
    let path = "/fn/probe/nn/run?model=slow";
    tokio::spawn(async move { client.post(path, "x;f32;4000000;ramp").await })
}

/// What a good while is depends on the machine: what is looked at during a compute is looked at again if that was over.
async fn in_time<F: Future<Output = Option<()>>>(attempt: impl Fn() -> F) {
    for _ in 0..5 {
        if attempt().await.is_some() {
            return;
        }
    }
    panic!("the compute was over each time before it was looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compute_keeps_its_processor_when_the_request_that_ran_the_guest_leaves() {
    in_time(|| async {
        let platform = platform_that_computes().await;
        // The first who comes runs the guest for all.
        let leading = call(&platform, "sleep?20000");
        busy_with(&platform, "busy with 1 of 8").await;
        platform.metric_becomes("fnctl_running", 0.0).await;
        let computing = compute(&platform);
        platform.metric_becomes("fnctl_running", 1.0).await;
        // What has begun is the compute by now, which takes some hundred times as long as to get there.
        tokio::time::sleep(Duration::from_millis(50)).await;
        leading.abort();
        eventually("the one that led is gone", || {
            platform.platform().in_flight() <= 1
        })
        .await;
        let running = platform.metric("fnctl_running").await;
        // One that comes while it is computed is not begun, and does not wait for it: the instance takes nobody new.
        let next = platform.call("probe/count").await.ok();
        if computing.is_finished() {
            return None;
        }
        assert_eq!(running, 1.0);
        assert_eq!((next.start(), next.text().as_str()), ("cold", "1"));
        computing.await.unwrap().ok();
        platform.metric_becomes("fnctl_running", 0.0).await;
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_during_a_compute_is_served_by_another_instance_if_that_one_ends() {
    in_time(|| async {
        let platform = platform_that_computes().await;
        let computing = compute(&platform);
        busy_with(&platform, "busy with 1 of 8").await;
        // It computes by now.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let came = call(&platform, "count");
        let told = || async {
            let told = instances(&platform).await;
            let mut whys = told.iter().filter_map(|instance| instance["why"].as_str());
            whys.any(|why| why.starts_with("busy with 2 of 8"))
        };
        while !told().await {
            if computing.is_finished() {
                return None;
            }
        }
        computing.abort();
        if computing.await.is_ok() {
            return None;
        }
        let came = came.await.unwrap().ok();
        assert_eq!(came.text(), "1", "of another instance");
        eventually("nothing is left", || platform.platform().in_flight() == 0).await;
        assert_eq!(instances(&platform).await.len(), 1);
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_after_the_answers_is_finished_before_the_instance_is_idle() {
    let platform = platform_with(4, |probe| probe.with("keep_alive", "1s")).await;
    let platform_ref = &platform;
    let ids: Vec<_> = (0..3)
        .map(|number| format!("shared-work-{number}"))
        .collect();
    let after = |id| async move {
        let headers = [("x-request-id", id)];
        let path = "/fn/probe/after";
        platform_ref
            .client
            .send(Method::GET, path, &headers, "")
            .await
            .ok()
    };
    for reply in join_all(ids.iter().map(|id| after(id.as_str()))).await {
        assert_eq!(reply.text(), "answered\n");
    }
    eventually("the guest is done", || platform.platform().in_flight() == 0).await;
    let lines = platform.guest_lines();
    for id in &ids {
        let said = |line: &String| line.contains(id) && line.contains("after the answer");
        assert!(lines.iter().any(said), "{id}");
    }
    eventually("nothing is left", || platform.platform().instances() == 0).await;
    is_fresh(&platform).await;
}

/// Everything at once: whatever comes of a request, it is answered, nothing of it is left, and no fault is the platform's
/// (an error line in its log fails a test).
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_every_kind_leaves_nothing_behind() {
    let platform = platform_with(8, |probe| {
        probe
            .with("timeout", "1s")
            .with("cpu", "5s")
            .with("keep_alive", "1s")
            .with("max_instances", 3)
            .with("max_uses", 40)
    })
    .await;
    let mut calls = Vec::new();
    let mut leaving = Vec::new();
    for number in 0..300 {
        match number % 30 {
            7 => calls.push((number, call(&platform, "trap"))),
            13 => calls.push((number, call(&platform, "hang"))),
            17 => leaving.push(call(&platform, "hang")),
            19 => leaving.push(call(&platform, "endless")),
            23 => calls.push((number, call(&platform, "trap-later"))),
            24 => calls.push((number, call(&platform, "error"))),
            25 => calls.push((number, call(&platform, "big?300000"))),
            _ if number % 3 == 0 => calls.push((number, call(&platform, "sleep?30"))),
            _ if number % 3 == 1 => calls.push((number, call(&platform, "stream"))),
            _ => calls.push((number, call(&platform, "count"))),
        }
        if number % 10 == 9 {
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        if number % 60 == 59 {
            for leaves in leaving.drain(..) {
                leaves.abort();
            }
        }
    }
    let mut fine = 0;
    for (number, reply) in calls {
        let reply = reply.await.unwrap();
        let status = reply.status.as_u16();
        assert!(
            [200, 429, 502, 504].contains(&status),
            "{number}: {}",
            reply.text()
        );
        fine += usize::from(status == 200 && reply.complete);
    }
    assert!(fine > 50, "{fine}");
    eventually("nobody is in flight", || {
        platform.platform().in_flight() == 0
    })
    .await;
    let count: u32 = platform
        .call("probe/count")
        .await
        .ok()
        .text()
        .parse()
        .unwrap();
    assert!(count <= 40, "{count}");
    eventually("nothing is left", || platform.platform().instances() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_share_is_refused_at_deploy() {
    let platform = TestPlatform::start().await;
    let command = file("tests/fixtures/guests/nn-command.wasm");
    let wanted = Deployment::new("command", command).with("instance_concurrency", 2);
    let refused = platform.try_deploy(&wanted).await;
    let message = refused["message"].as_str().expect("a message");
    assert!(message.contains("only a WASI 0.3 component"), "{message}");
    let wanted = Deployment::new("probe", probe3())
        .with("instance_concurrency", 2)
        .with("isolation", "request");
    let refused = platform.try_deploy(&wanted).await.to_string();
    assert!(refused.contains("isolation"), "{refused}");
}
