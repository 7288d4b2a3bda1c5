//! Outputs bound to their places, with the real library: the same answers as without, whatever the model is like.

use super::bound::{Learned, Outputs, WORTH, execute};
use super::shared::{Layout, Shared};
use crate::config::Config;
use crate::inputs;
use crate::runtime::Runtime;
use crate::session::OnnxSession;
use fnctl_core::inference::{Computed, InferenceErrorKind, Tensor, TensorType};
use std::sync::Arc;

#[allow(
    dead_code,
    unreachable_pub,
    reason = "it belongs to the tests of the whole platform, which use more of it"
)]
#[path = "../../../tests/src/onnx.rs"]
mod onnx;

/// Numbers whose tensor is worth a place.
const MANY: usize = WORTH / 8 + 3;

struct Bench {
    session: Arc<OnnxSession>,
    learned: Learned,
    shared: Arc<Shared>,
    room: (usize, usize),
}

impl Bench {
    fn new(model: &[Vec<u8>]) -> Self {
        let runtime = Runtime::load(&Config::default()).unwrap();
        let session = Arc::new(runtime.load_bytes(&onnx::model(model)).unwrap());
        let layout = Layout::new(1, 16 << 20);
        let room = (layout.heap_offset() + 4096, 8 << 20);
        let shared = Arc::new(Shared::create(layout).unwrap());
        Self {
            learned: Learned::new(&session.info),
            session,
            shared,
            room,
        }
    }

    fn prepared(&self, numbers: &[i64]) -> crate::session::Run {
        let data: Vec<u8> = numbers.iter().flat_map(|one| one.to_le_bytes()).collect();
        let tensor = Tensor {
            dimensions: vec![u32::try_from(numbers.len()).unwrap()],
            ty: TensorType::I64,
            data: data.into(),
        };
        let inputs = inputs::check(&self.session.info, vec![(0, tensor)]).unwrap();
        self.session.bind(inputs).unwrap()
    }

    /// The answer as it is without any of this.
    fn expected(&self, numbers: &[i64]) -> Computed {
        self.prepared(numbers).execute().unwrap()
    }

    /// Whether the outputs went to their places. They are right in any case.
    fn is_placed(&self, numbers: &[i64]) -> bool {
        self.is_placed_in(self.room, numbers)
    }

    fn is_placed_in(&self, room: (usize, usize), numbers: &[i64]) -> bool {
        let run = self.prepared(numbers);
        let expected = self.expected(numbers);
        // What somebody else left there, so that the last answer is not taken for this one.
        let _ = self.shared.write(room.0, &vec![0x33; room.1]);
        match execute(&self.learned, &run, &self.shared, room).unwrap() {
            Outputs::Loose(outputs) => {
                assert_eq!(outputs, expected);
                false
            }
            Outputs::Placed(outputs) => {
                assert_eq!(outputs.len(), expected.len());
                for (output, (_, tensor)) in outputs.iter().zip(&expected) {
                    assert_eq!(
                        (output.ty, &output.dimensions),
                        (tensor.ty, &tensor.dimensions)
                    );
                    let bytes = |number: u64| usize::try_from(number).unwrap();
                    let at = (bytes(output.at.offset), bytes(output.at.length));
                    assert_eq!(self.shared.read_bytes(at.0, at.1).unwrap(), tensor.data);
                    assert!(at.0 >= room.0 && at.0 + at.1 <= room.0 + room.1);
                }
                true
            }
        }
    }
}

fn numbers(count: usize) -> Vec<i64> {
    (1..).take(count).collect()
}

/// As many, and others each time.
fn other_numbers(count: usize, round: i64) -> Vec<i64> {
    (round * 1000..).take(count).collect()
}

fn open(name: &str) -> Vec<u8> {
    onnx::open_value(name, onnx::element::I64)
}

/// Two outputs: the input, negated once and twice.
fn negations() -> [Vec<u8>; 5] {
    [
        onnx::node("Neg", &["x"], "y"),
        onnx::node("Neg", &["y"], "z"),
        onnx::input(&open("x")),
        onnx::output(&open("y")),
        onnx::output(&open("z")),
    ]
}

#[tokio::test]
async fn what_came_out_once_has_its_place_the_next_time() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&negations());
    let many = numbers(MANY);
    assert!(!bench.is_placed(&many), "nobody knows what will come");
    for _ in 0..3 {
        assert!(bench.is_placed(&many));
    }
    // Other numbers of the same shape, and another shape.
    assert!(bench.is_placed(&vec![-5; MANY]));
    assert!(!bench.is_placed(&numbers(MANY + 1)));
    assert!(bench.is_placed(&numbers(MANY + 1)));
    assert!(bench.is_placed(&many));
    // What is small is copied.
    for _ in 0..3 {
        assert!(!bench.is_placed(&numbers(10)));
    }
}

#[tokio::test]
async fn places_that_there_is_no_room_for_are_not_taken() {
    let _turn = crate::tests::turn().await;
    let mut bench = Bench::new(&negations());
    let many = numbers(MANY);
    assert!(!bench.is_placed(&many));
    let each = (MANY * 8).next_multiple_of(64);
    for (room, placed) in [
        ((bench.room.0, 2 * each), true),
        ((bench.room.0, 2 * each - 1), false),
        ((bench.room.0 + 1, bench.room.1 - 64), false),
        ((bench.room.0, 0), false),
        ((usize::MAX, 2), false),
    ] {
        bench.room = room;
        assert_eq!(bench.is_placed(&many), placed, "{room:?}");
    }
    // A room that is nowhere is the platform's mistake, and no reason to write there.
    bench.room = (bench.shared.layout.length() & !63, 4 * each);
    assert!(!bench.is_placed(&many));
}

/// As many zeros as the input's number says, whose shape is always the same.
#[tokio::test]
async fn a_shape_that_depends_on_the_numbers_is_refused_once_and_not_tried_again() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&[
        onnx::node("ConstantOfShape", &["x"], "y"),
        onnx::input(&open("x")),
        onnx::output(&onnx::open_value("y", onnx::element::F32)),
    ]);
    let (some, more) = (
        i64::try_from(MANY * 2).unwrap(),
        i64::try_from(MANY * 3).unwrap(),
    );
    assert!(!bench.is_placed(&[some]));
    assert!(bench.is_placed(&[some]));
    // ONNX Runtime refuses the place; the answer is right all the same.
    assert!(!bench.is_placed(&[more]));
    for number in [some, some, more, more] {
        assert!(!bench.is_placed(&[number]), "given up");
    }
}

#[tokio::test]
async fn a_declared_shape_that_is_wrong_does_no_harm() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&[
        onnx::node("Neg", &["x"], "y"),
        onnx::input(&open("x")),
        onnx::output(&onnx::value("y", onnx::element::I64, 7)),
    ]);
    for round in 0..4 {
        let placed = bench.is_placed(&other_numbers(MANY, round));
        assert!(!placed, "refused before anything is computed");
    }
}

/// ONNX Runtime computes it while it loads the model: no operator asks for the place.
#[tokio::test]
async fn an_output_that_is_constant_is_right() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&[
        onnx::constant("seven", &[7]),
        onnx::constant("shape", &[i64::try_from(MANY).unwrap()]),
        onnx::node("Expand", &["seven", "shape"], "y"),
        onnx::input(&open("x")),
        onnx::output(&open("y")),
    ]);
    for round in 0..4 {
        let placed = bench.is_placed(&[round]);
        assert_eq!(placed, round > 0, "{round}");
    }
}

#[tokio::test]
async fn an_output_that_is_an_input_has_no_place() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&[
        onnx::node("Neg", &["x"], "y"),
        onnx::input(&open("x")),
        onnx::output(&open("y")),
        onnx::output(&open("x")),
    ]);
    for _ in 0..4 {
        assert!(!bench.is_placed(&numbers(MANY)));
    }
    // By another name it is copied.
    let bench = Bench::new(&[
        onnx::node("Identity", &["x"], "y"),
        onnx::input(&open("x")),
        onnx::output(&open("y")),
    ]);
    for round in 0..4 {
        let placed = bench.is_placed(&other_numbers(MANY, round));
        assert_eq!(placed, round > 0, "{round}");
    }
}

/// Only so many shapes are remembered, the last ones that were used.
#[tokio::test]
async fn shapes_that_nobody_uses_are_forgotten() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&negations());
    let of = |more: usize| numbers(MANY + more);
    for more in 0..4 {
        assert!(!bench.is_placed(&of(more)));
    }
    assert!(bench.is_placed(&of(0)), "the oldest, and used again");
    assert!(!bench.is_placed(&of(4)));
    assert!(bench.is_placed(&of(0)));
    assert!(!bench.is_placed(&of(1)), "forgotten for it");
}

/// What fails in its place and would fail without is no reason to give places up.
#[tokio::test]
async fn a_run_that_fails_leaves_what_is_known() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&negations());
    let many = numbers(MANY);
    assert!(!bench.is_placed(&many));
    assert!(bench.is_placed(&many));
    let run = bench.prepared(&many);
    drop(run.stopper());
    let error = execute(&bench.learned, &run, &bench.shared, bench.room).unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Runtime, "{error}");
    assert!(bench.is_placed(&many));
}

/// It may be ended while it is made again, and so may every one that comes after it.
#[tokio::test]
async fn a_refused_place_is_given_up_also_if_the_run_fails_without_it() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&[
        onnx::constant("seven", &[7]),
        onnx::constant("shape", &[i64::try_from(MANY).unwrap()]),
        onnx::node("Expand", &["seven", "shape"], "sevens"),
        onnx::node("ConstantOfShape", &["x"], "y"),
        onnx::node("Shape", &["y"], "s"),
        onnx::node("Expand", &["sevens", "s"], "z"),
        onnx::input(&open("x")),
        onnx::output(&onnx::open_value("y", onnx::element::F32)),
        onnx::output(&open("z")),
    ]);
    let many = i64::try_from(MANY).unwrap();
    assert!(!bench.is_placed(&[many]));
    assert!(bench.is_placed(&[many]));
    // The first output has another shape than its place, and the second cannot be computed at all.
    let run = bench.prepared(&[many * 2]);
    let error = execute(&bench.learned, &run, &bench.shared, bench.room).unwrap_err();
    assert_eq!(error.kind, InferenceErrorKind::Runtime, "{error}");
    assert!(!bench.is_placed(&[many]), "given up");
}

#[tokio::test]
async fn what_looks_as_if_nobody_had_written_it_is_computed_again() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&[
        onnx::node("Neg", &["x"], "y"),
        onnx::input(&open("x")),
        onnx::output(&open("y")),
    ]);
    let pattern = i64::from_le_bytes([0xa5; 8]);
    assert!(!bench.is_placed(&numbers(MANY)));
    // All but one number of the answer are the pattern.
    let mut nearly = vec![-pattern; MANY];
    nearly[MANY - 1] = 1;
    assert!(bench.is_placed(&nearly));
    let bench = Bench::new(&negations());
    assert!(!bench.is_placed(&numbers(MANY)));
    assert!(!bench.is_placed(&vec![-pattern; MANY]));
    assert!(!bench.is_placed(&numbers(MANY)), "given up");
}

#[tokio::test]
async fn threads_that_learn_at_once_disturb_nobody() {
    let _turn = crate::tests::turn().await;
    let bench = Bench::new(&negations());
    let start = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (bench, start) = (&bench, &start);
            scope.spawn(move || {
                let room = (bench.room.0 + thread * (2 << 20), 2 << 20);
                start.wait();
                for round in 0..20 {
                    let count = MANY + usize::try_from(round % 5).unwrap();
                    bench.is_placed_in(room, &other_numbers(count, round));
                }
            });
        }
    });
    assert!(bench.is_placed(&numbers(MANY)) || bench.is_placed(&numbers(MANY)));
}
