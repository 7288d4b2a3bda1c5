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
        // What somebody else left there.
        shared.write(room.0, &vec![0x33; room.1]).unwrap();
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
        let run = self.prepared(numbers);
        let expected = self.expected(numbers);
        match execute(&self.learned, &run, &self.shared, self.room).unwrap() {
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
                    assert!(at.0 >= self.room.0 && at.0 + at.1 <= self.room.0 + self.room.1);
                }
                true
            }
        }
    }
}

fn numbers(count: usize) -> Vec<i64> {
    (1..).take(count).collect()
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
    for _ in 0..4 {
        bench.is_placed(&numbers(MANY));
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
    for _ in 0..4 {
        bench.is_placed(&[1]);
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
    for _ in 0..4 {
        bench.is_placed(&numbers(MANY));
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
