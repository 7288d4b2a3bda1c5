//! Catches the platform's log.

use parking_lot::Mutex;
use std::sync::Once;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

static INSTALLED: Once = Once::new();
static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static EXPECTED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static GUEST: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Catch;

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{}={value:?} ", field.name()));
    }
}

impl<S: Subscriber> Layer<S> for Catch {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        if *event.metadata().level() == Level::ERROR {
            ERRORS.lock().push(text.0);
        } else if event.metadata().target() == "guest" {
            GUEST.lock().push(text.0);
        }
    }
}

pub(crate) fn install() {
    INSTALLED.call_once(|| tracing_subscriber::registry().with(Catch).init());
}

/// Declares that the platform will log an error that contains `text`.
pub fn expect_error(text: &str) {
    EXPECTED.lock().push(text.to_owned());
}

/// Fails if an error was logged that nobody declared.
pub(crate) fn check() {
    let expected = EXPECTED.lock().clone();
    let unexpected: Vec<_> = ERRORS
        .lock()
        .drain(..)
        .filter(|error| !expected.iter().any(|text| error.contains(text.as_str())))
        .collect();
    assert!(
        unexpected.is_empty(),
        "the platform logged errors that the test did not declare: {unexpected:#?}"
    );
}

/// The guests' lines so far.
pub(crate) fn guest_lines() -> Vec<String> {
    GUEST.lock().clone()
}
