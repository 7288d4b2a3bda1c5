//! `fnctl top`: what the functions do now, redrawn in place on a terminal, one table or object a reading elsewhere.

use crate::activity::{Activity, FunctionRow, Order, Snapshot};
use crate::app::App;
use crate::client::Client;
use crate::output::{Page, Screen, Table, Tone, Wake, bytes};
use clap::Args;
use fnctl_core::units::Period;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Shortest time between two readings.
const SHORTEST: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
#[command(
    after_help = "Keys: r rate, c cold share, m memory, u queue, e errors, n name; q quits.\n\nExamples:\n  fnctl top\n  fnctl top --interval 500ms --sort cold\n  fnctl top --count 1 --json | jq '.functions[0]'"
)]
pub(crate) struct TopArgs {
    /// Time between two readings; rates are of this time.
    #[arg(long, short = 'n', value_name = "TIME", default_value = "2s")]
    interval: Period,
    /// End after so many readings. Without it: never on a terminal, after one elsewhere.
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU32>,
    /// The order of the rows.
    #[arg(long, value_enum, default_value_t)]
    sort: Order,
}

pub(crate) fn run(app: &App, args: &TopArgs) -> anyhow::Result<()> {
    let client = app.client()?;
    let interval = args.interval.duration().max(SHORTEST);
    let before = read(&client)?;
    match app.out.screen()? {
        Some(screen) => live(&client, &screen, args, interval, before),
        None => plain(app, &client, args, interval, before),
    }
}

/// An answer, and when it was there.
type Reading = (Instant, Activity);

fn read(client: &Client) -> anyhow::Result<Reading> {
    let activity = client.json("GET", "activity", None)?;
    Ok((Instant::now(), activity))
}

fn between(before: &Reading, after: &Reading, order: Order) -> Snapshot {
    let seconds = after.0.duration_since(before.0).as_secs_f64();
    Snapshot::between(&before.1, &after.1, seconds, order)
}

/// One table, or one object, a reading.
fn plain(
    app: &App,
    client: &Client,
    args: &TopArgs,
    interval: Duration,
    mut before: Reading,
) -> anyhow::Result<()> {
    for _ in 0..args.count.map_or(1, NonZeroU32::get) {
        // Rates are of the measured time, so waking early does no harm.
        std::thread::park_timeout(interval);
        let after = read(client)?;
        let snapshot = between(&before, &after, args.sort);
        app.out.item(&snapshot, |page| draw(page, &snapshot))?;
        before = after;
    }
    Ok(())
}

/// The same place on the terminal, over and over.
fn live(
    client: &Client,
    screen: &Screen,
    args: &TopArgs,
    interval: Duration,
    first: Reading,
) -> anyhow::Result<()> {
    let mut order = args.sort;
    let (mut before, mut after) = (first.clone(), first);
    let mut readings = 0;
    let mut next = Instant::now() + interval;
    loop {
        let snapshot = between(&before, &after, order);
        screen.draw(|page| {
            draw(page, &snapshot);
            page.pieces([("", Tone::Plain)]);
            page.pieces([(
                "r rate  c cold  m memory  u queue  e errors  n name  q quit",
                Tone::Dim,
            )]);
        })?;
        match screen.wait(next) {
            Wake::Elapsed => {
                before = std::mem::replace(&mut after, read(client)?);
                readings += 1;
                if args.count.is_some_and(|count| readings >= count.get()) {
                    return Ok(());
                }
                next = Instant::now() + interval;
            }
            Wake::Resized => {}
            Wake::Key('q') | Wake::Quit => return Ok(()),
            Wake::Key(key) => order = order_of(key).unwrap_or(order),
        }
    }
}

fn order_of(key: char) -> Option<Order> {
    Some(match key {
        'r' => Order::Rate,
        'c' => Order::Cold,
        'm' => Order::Memory,
        'u' => Order::Queue,
        'e' => Order::Errors,
        'n' => Order::Name,
        _ => return None,
    })
}

fn draw(page: &mut Page, snapshot: &Snapshot) {
    let memory = &snapshot.memory;
    page.pieces([
        (format!("{} functions", snapshot.deployed), Tone::Strong),
        (format!(", {} at zero", snapshot.at_zero), Tone::Plain),
        (
            format!(
                "   instances {} of {}   sessions {}   inference hosts {}",
                snapshot.instances,
                snapshot.instances_limit,
                snapshot.sessions,
                snapshot.hosts.running
            ),
            Tone::Plain,
        ),
        (
            match snapshot.hosts.quarantined_models {
                0 => String::new(),
                count => format!("   models in quarantine {count}"),
            },
            Tone::Bad,
        ),
    ]);
    page.pieces([
        (format!("{}/s", rate(snapshot.per_second)), Tone::Strong),
        (
            format!(", cold {}", percent(snapshot.cold_rate)),
            cold_tone(snapshot.cold_rate),
        ),
        (
            format!(
                "   memory: process {}, hosts {}, sandboxes {}, sessions {} of {}",
                bytes(memory.resident_bytes),
                bytes(memory.host_bytes),
                bytes(memory.sandbox_bytes),
                bytes(memory.session_bytes),
                bytes(memory.session_limit_bytes)
            ),
            Tone::Plain,
        ),
    ]);
    page.pieces([("", Tone::Plain)]);
    if snapshot.functions.is_empty() {
        page.line("every function is at zero");
        return;
    }
    let mut table = Table::new(&[
        "FUNCTION", "RATE/S", "COLD", "P50 MS", "P95 MS", "IDLE", "BUSY", "START", "QUEUE",
        "ERR/S", "MEMORY",
    ]);
    for row in &snapshot.functions {
        table.row(cells(row));
    }
    page.table(table);
}

fn cells(row: &FunctionRow) -> [(String, Tone); 11] {
    let lively = |count: u64, tone| if count > 0 { tone } else { Tone::Dim };
    let failing = row.errors_per_second > 0.0;
    let resting = if row.instances() == 0 {
        Tone::Dim
    } else {
        Tone::Strong
    };
    [
        (row.name.clone(), resting),
        (rate(row.per_second), Tone::Plain),
        (percent(row.cold_rate), cold_tone(row.cold_rate)),
        (milliseconds(row.p50_ms), Tone::Plain),
        (milliseconds(row.p95_ms), Tone::Plain),
        (row.idle.to_string(), lively(row.idle, Tone::Plain)),
        (row.busy.to_string(), lively(row.busy, Tone::Good)),
        (row.starting.to_string(), lively(row.starting, Tone::Warn)),
        (row.queued.to_string(), lively(row.queued, Tone::Warn)),
        (
            rate(row.errors_per_second),
            if failing { Tone::Bad } else { Tone::Dim },
        ),
        (
            bytes(row.memory_bytes),
            lively(row.memory_bytes, Tone::Plain),
        ),
    ]
}

fn cold_tone(share: Option<f64>) -> Tone {
    // The threshold of the alert in deploy/prometheus.
    match share {
        Some(share) if share > 0.05 => Tone::Warn,
        _ => Tone::Plain,
    }
}

fn rate(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 10.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([rate(0.0), rate(0.26), rate(1234.5)], ["0", "0.3", "1234"]);
        assert_eq!([percent(None), percent(Some(0.125))], ["-", "12.5%"]);
    }
}
