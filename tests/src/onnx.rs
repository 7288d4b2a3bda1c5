//! Small ONNX models, written by hand as protocol buffers (onnx.proto3): for what no trained model does.

/// A field of bytes.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).expect("seven bits"));
    out.extend_from_slice(bytes);
    out
}

/// A field of a small number.
pub fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

/// The element types of wasi-nn as `TensorProto.DataType` numbers them.
pub mod element {
    /// Single precision.
    pub const F32: u8 = 1;
    /// Signed, 64 bit.
    pub const I64: u8 = 7;
}

/// An input or output: a name, an element type, one dimension.
pub fn value(name: &str, element: u8, size: u8) -> Vec<u8> {
    let shape = field(1, &number(1, size));
    let tensor = [number(1, element), field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// An input or output of one dimension that may be of any size.
pub fn open_value(name: &str, element: u8) -> Vec<u8> {
    let shape = field(1, &field(2, b"n"));
    let tensor = [number(1, element), field(2, &shape)].concat();
    [field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat()
}

/// A node.
pub fn node(operator: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let mut node = Vec::new();
    for input in inputs {
        node.extend(field(1, input.as_bytes()));
    }
    node.extend(field(2, output.as_bytes()));
    node.extend(field(4, operator.as_bytes()));
    field(1, &node)
}

/// A constant of one dimension.
pub fn constant(name: &str, values: &[i64]) -> Vec<u8> {
    let raw: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let tensor = [
        number(1, u8::try_from(values.len()).expect("a few")),
        number(2, element::I64),
        field(8, name.as_bytes()),
        field(9, &raw),
    ];
    field(5, &tensor.concat())
}

/// A model of opset 13 with these graph fields.
pub fn model(graph: &[Vec<u8>]) -> Vec<u8> {
    let graph = [graph.concat(), field(2, b"g")].concat();
    let opset = [field(1, b""), number(2, 13)].concat();
    [number(1, 8), field(8, &opset), field(7, &graph)].concat()
}

/// The graph field of an input.
pub fn input(value: &[u8]) -> Vec<u8> {
    field(11, value)
}

/// The graph field of an output.
pub fn output(value: &[u8]) -> Vec<u8> {
    field(12, value)
}

/// `z = x / y` in whole numbers, four at a time. ONNX Runtime looks for a zero in `y`, but not for the one quotient that
/// does not fit its type: the least number by -1 is the processor's division fault (SIGFPE), which no error value survives.
pub fn division() -> Vec<u8> {
    model(&[
        node("Div", &["x", "y"], "z"),
        input(&value("x", element::I64, 4)),
        input(&value("y", element::I64, 4)),
        output(&value("z", element::I64, 4)),
    ])
}

/// The same of two constants: ONNX Runtime computes it while it loads the model.
pub fn division_at_load() -> Vec<u8> {
    model(&[
        constant("a", &[i64::MIN; 4]),
        constant("b", &[-1; 4]),
        node("Div", &["a", "b"], "c"),
        node("Add", &["x", "c"], "z"),
        input(&value("x", element::I64, 4)),
        output(&value("z", element::I64, 4)),
    ])
}

/// An output that is the input of this element type, of any length.
pub fn identity(element: u8) -> Vec<u8> {
    model(&[
        node("Identity", &["x"], "y"),
        input(&open_value("x", element)),
        output(&open_value("y", element)),
    ])
}
