//! Real inference hosts through the crate alone: this very program is the host, as `fnctl` is the platform's.
//!
//! `FNCTL_SEED=7 cargo test -p fnctl-inference --test hosts chaos` repeats one seed of the chaos.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails that way"
)]

#[allow(
    dead_code,
    unreachable_pub,
    reason = "it belongs to the tests of the whole platform, which use more of it"
)]
#[path = "../../../tests/src/onnx.rs"]
mod onnx;

mod chaos;
mod guilt;
mod lanes;
mod lifetimes;
mod memory;
mod system;
mod talk;

use libtest_mimic::{Arguments, Failed, Trial};
use std::future::Future;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(fnctl_inference::SUBCOMMAND) {
        if let Err(error) = fnctl_inference::serve() {
            // Where the platform logs what its hosts say.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), error.to_string().as_bytes());
            std::process::exit(1);
        }
        return;
    }
    let mut arguments = Arguments::from_args();
    // Each looks at the processes and descriptors of the whole program.
    arguments.test_threads = Some(1);
    let tests = vec![
        test(
            "a_guest_that_changes_its_model_is_known_by_its_function",
            guilt::changing_models,
        ),
        test(
            "a_host_stopped_from_outside_blames_no_cancelled_run",
            guilt::stopped_while_cancelled,
        ),
        test(
            "a_function_that_kills_with_a_shared_model_is_kept_away_alone",
            guilt::shared_model,
        ),
        test("a_fast_model_waits_for_no_slow_one", lanes::fast_ahead),
        test("what_cannot_fit_evicts_nobody", memory::in_vain),
        test(
            "what_fits_without_its_own_functions_idle_models_evicts_those",
            memory::own_first,
        ),
        test(
            "an_inference_finds_room_where_idle_models_were",
            memory::for_an_inference,
        ),
        test(
            "an_inference_evicts_no_more_than_it_needs",
            memory::one_is_enough,
        ),
        test("who_takes_room_in_vain_takes_no_more", memory::who_pays),
        test(
            "a_session_given_up_while_its_host_starts_stays_in_no_host",
            lifetimes::released_while_reloaded,
        ),
        test(
            "a_session_given_up_while_its_host_is_replaced_stays_in_no_host",
            lifetimes::released_while_replaced,
        ),
        test(
            "a_host_that_dies_while_another_is_replaced_is_not_forgotten",
            lifetimes::died_while_another_is_replaced,
        ),
        test(
            "hosts_that_start_while_all_end_end_too",
            lifetimes::ended_while_replaced,
        ),
        test("chaos", chaos::seeds),
    ];
    libtest_mimic::run(&arguments, tests).exit();
}

fn test<F: Future<Output = ()> + 'static>(name: &str, body: fn() -> F) -> Trial {
    Trial::test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Failed::from(error.to_string()))?;
        runtime.block_on(body());
        Ok(())
    })
}
