//! A platform that has something to show on every panel: functions with two versions, cold starts, errors, full queues,
//! a full node, models that come and go, inference hosts that die.

use super::breaker;
use crate::bench::server::Server;
use crate::process;
use anyhow::Context;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The function that shows everything the function dashboard has; what `$function` stands for.
pub(crate) const FUNCTION: &str = "probe";

/// Settings so narrow that a small load reaches every limit.
pub(crate) const SETTINGS: &[&str] = &[
    "worker.max_instances=24",
    "inference.memory=2MiB",
    "inference.session_ttl=1s",
    "inference.quarantine_after=1",
];

/// A guest that does what its path says.
const GUEST: &str = "tests/fixtures/guests/probe.wasm";
/// A small file that wants far more memory than `inference.memory` above.
const LARGE_MODEL: &str = "large=tests/fixtures/models/light_vgg19.onnx";

/// Deploys what is called.
pub(crate) fn deploy(platform: &Server, program: &Path) -> anyhow::Result<()> {
    platform.deploy(program, &["examples/echo"])?;
    platform.deploy(program, &["examples/fraud"])?;
    platform.deploy(
        program,
        &["examples/echo", "--name", "cold", "--keep-alive", "0s"],
    )?;
    let folder = tempfile::tempdir()?;
    let root = crate::root();
    let path = |name: &str| format!("{:?}", root.join(name).display().to_string());
    let guest = path(GUEST);
    let mlp = path("examples/fraud/models/fraud_mlp16.onnx");
    let trees = path("tests/fixtures/models/fraud_gbdt16_label_prob.onnx");
    let write = |name: &str, rest: &str| {
        let text = format!("name = \"{name}\"\nartifact = {guest}\nmemory = \"32MiB\"\n{rest}");
        std::fs::write(folder.path().join("function.toml"), text)
    };
    let at = folder.path().display().to_string();
    // Calls of 1.5 s: over the alert's threshold.
    write("slow", "")?;
    platform.deploy(program, &[&at])?;
    // Fills the node.
    write("crowd", "")?;
    platform.deploy(program, &[&at])?;
    // A model that is unloaded between two calls.
    write(
        "seldom",
        &format!("keep_alive = \"0s\"\n[models]\ntrees = {trees}\n"),
    )?;
    platform.deploy(program, &[&at])?;
    // Always there, and with a share of its own.
    write(
        "kept",
        "provisioned = 1\nreserved_concurrency = 5\ntarget_concurrency = \"70%\"\n",
    )?;
    platform.deploy(program, &[&at])?;
    breaker::write(&folder.path().join("division.onnx"))?;
    write(
        "breaker",
        "keep_alive = \"0s\"\n[models]\ndivision = \"division.onnx\"\n",
    )?;
    platform.deploy(program, &[&at])?;
    for version in ["1", "2"] {
        write(
            FUNCTION,
            &format!(
                "concurrency = 2\nqueue_size = 3\nqueue_timeout = \"700ms\"\nkeep_alive = \"1s\"\n\
                 provisioned = 1\ntarget_concurrency = \"70%\"\n\
                 rate_limit = {{ requests_per_second = 8, burst = 8 }}\n\
                 [models]\nfraud = {mlp}\n[env]\nVERSION = \"{version}\"\n"
            ),
        )?;
        platform.deploy(program, &[&at])?;
    }
    let url = platform.url("");
    let program = program.display().to_string();
    let split = ["--server", &url, "alias", FUNCTION, "live", "2"];
    process::output(&program, &[&split[..], &["--split", "1=40"]].concat())?;
    Ok(())
}

/// Callers; they stop with this value.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers.drain(..) {
            let _ = caller.join();
        }
    }
}

impl Load {
    /// Starts to call what was deployed.
    pub(crate) fn start(platform: &Server, program: &Path) -> anyhow::Result<Self> {
        let payment = std::fs::read_to_string(crate::root().join("examples/fraud/request.json"))
            .context("the sample request")?;
        let mut load = Self {
            stop: Arc::default(),
            callers: Vec::new(),
        };
        let ms = Duration::from_millis;
        load.calls(platform, ms(50), &[("echo", "hello")]);
        load.calls(platform, ms(100), &[("fraud", &payment)]);
        load.calls(platform, ms(400), &[("cold", "")]);
        load.calls(platform, ms(2500), &[("seldom/count", "")]);
        let infer = ("probe/nn/run?model=fraud", "features;f32;1x16;ramp");
        let calls = [
            infer,
            infer,
            ("probe/sleep?5", ""),
            infer,
            ("probe/trap", ""),
        ];
        load.calls(platform, ms(80), &calls);
        // Eight at once of which two are permitted and three may wait: some wait too long, some are refused.
        for _ in 0..8 {
            load.calls(platform, ms(500), &[("probe/sleep?600", "")]);
        }
        for _ in 0..2 {
            load.calls(platform, ms(0), &[("slow/sleep?1500", "")]);
        }
        // Nearly all of the node's slots, and now and then more than there are.
        for _ in 0..18 {
            load.calls(platform, ms(20), &[("crowd/sleep?400", "")]);
        }
        for _ in 0..8 {
            load.calls(platform, ms(3000), &[("crowd/sleep?300", "")]);
        }
        load.calls(platform, ms(0), &[("kept/sleep?300", "")]);
        load.calls(platform, ms(3000), &[breaker::FATAL]);
        breaker::killer(&mut load, platform);
        // Refused each time.
        let (url, program) = (platform.url(""), program.display().to_string());
        load.repeat(ms(4000), move |_| {
            let deploy = ["--server", &url, "deploy", GUEST, "--name", "large"];
            process::succeeds(&program, &[&deploy[..], &["--model", LARGE_MODEL]].concat());
        });
        let listing = platform.url("/api/v1/functions");
        load.repeat(ms(1000), move |agent| {
            let _ = agent.get(&listing).call();
        });
        Ok(load)
    }

    /// One caller that goes through its calls, at most one in each period, whatever they answer.
    fn calls(&mut self, platform: &Server, every: Duration, calls: &[(&str, &str)]) {
        let calls: Vec<_> = calls
            .iter()
            .map(|(path, body)| (platform.url(&format!("/fn/{path}")), (*body).to_owned()))
            .collect();
        let mut turn = 0;
        self.repeat(every, move |agent| {
            if let Some((url, body)) = calls.get(turn % calls.len().max(1)) {
                let answer = agent.post(url).send(body);
                // Read, so that the connection is kept.
                let _ = answer.map(|mut answer| answer.body_mut().read_to_vec());
            }
            turn += 1;
        });
    }

    /// One thread that does this, at most once in each period.
    pub(crate) fn repeat(
        &mut self,
        every: Duration,
        mut work: impl FnMut(&ureq::Agent) + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.callers.push(std::thread::spawn(move || {
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(Duration::from_secs(5)))
                .http_status_as_error(false)
                .build()
                .into();
            while !stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                work(&agent);
                std::thread::park_timeout(every.saturating_sub(since.elapsed()));
            }
        }));
    }
}
