//! `wasi_ephemeral_nn`, the witx of WebAssembly/wasi-nn, for core modules.
//!
//! Layouts are those of the witx file: a list is (pointer, length), a tensor record is dimensions at 0, type at 8 and
//! data at 12; results go to a pointer, the returned number is the errno.

use super::{HeldTensor, MAX_HANDLES, ModelLease, NnContext, check_target};
use bytes::Bytes;
use fnctl_core::inference::{InferenceError, InferenceErrorKind, Tensor, TensorType};
use std::collections::BTreeMap;
use std::sync::Arc;
use wasmtime::{Caller, Extern, Linker};

const MODULE: &str = "wasi_ephemeral_nn";

/// witx `nn_errno`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Errno {
    Success = 0,
    InvalidArgument = 1,
    InvalidEncoding = 2,
    MissingMemory = 3,
    RuntimeError = 5,
    UnsupportedOperation = 6,
    TooLarge = 7,
    NotFound = 8,
}

impl From<&InferenceError> for Errno {
    fn from(error: &InferenceError) -> Self {
        match error.kind {
            InferenceErrorKind::InvalidArgument => Self::InvalidArgument,
            InferenceErrorKind::InvalidEncoding => Self::InvalidEncoding,
            InferenceErrorKind::Unsupported => Self::UnsupportedOperation,
            InferenceErrorKind::TooLarge => Self::TooLarge,
            InferenceErrorKind::NotFound | InferenceErrorKind::Security => Self::NotFound,
            InferenceErrorKind::Timeout
            | InferenceErrorKind::Runtime
            | InferenceErrorKind::Unavailable
            | InferenceErrorKind::Quarantined => Self::RuntimeError,
        }
    }
}

type Outcome<T> = Result<T, Errno>;

/// The handles of one core module.
pub(crate) struct WitxHandles {
    graphs: BTreeMap<u32, Arc<ModelLease>>,
    contexts: BTreeMap<u32, Context>,
    next: u32,
}

struct Context {
    graph: Arc<ModelLease>,
    inputs: BTreeMap<u32, HeldTensor>,
    outputs: Vec<HeldTensor>,
}

impl WitxHandles {
    pub(crate) fn new() -> Self {
        Self {
            graphs: BTreeMap::new(),
            contexts: BTreeMap::new(),
            next: 0,
        }
    }

    fn handle(&mut self) -> Outcome<u32> {
        if self.graphs.len() + self.contexts.len() >= MAX_HANDLES {
            return Err(Errno::TooLarge);
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    fn add_graph(&mut self, graph: Arc<ModelLease>) -> Outcome<u32> {
        let handle = self.handle()?;
        self.graphs.insert(handle, graph);
        Ok(handle)
    }

    fn context(&mut self, handle: u32) -> Outcome<&mut Context> {
        self.contexts.get_mut(&handle).ok_or(Errno::InvalidArgument)
    }
}

/// What the bindings need of a store's data.
pub(crate) trait WitxHost: Send + 'static {
    fn nn(&mut self) -> (&mut NnContext, &mut WitxHandles);
    /// Puts the text of an error into the guest's log: the errno alone says little.
    fn note(&mut self, error: &InferenceError);
}

/// Bounds-checked access to the guest's memory.
struct Memory<'a, 'c, T: 'static> {
    caller: &'a mut Caller<'c, T>,
    memory: wasmtime::Memory,
}

impl<'a, 'c, T: WitxHost> Memory<'a, 'c, T> {
    fn of(caller: &'a mut Caller<'c, T>) -> Outcome<Self> {
        let memory = caller
            .get_export("memory")
            .and_then(Extern::into_memory)
            .ok_or(Errno::MissingMemory)?;
        Ok(Self { caller, memory })
    }

    fn bytes(&self, pointer: u32, length: u32) -> Outcome<&[u8]> {
        let start = pointer as usize;
        let end = start
            .checked_add(length as usize)
            .ok_or(Errno::InvalidArgument)?;
        self.memory
            .data(&*self.caller)
            .get(start..end)
            .ok_or(Errno::InvalidArgument)
    }

    fn words<const N: usize>(&self, pointer: u32) -> Outcome<[u32; N]> {
        let length = u32::try_from(N * 4).map_err(|_| Errno::InvalidArgument)?;
        let mut words = [0; N];
        for (word, bytes) in words
            .iter_mut()
            .zip(self.bytes(pointer, length)?.chunks_exact(4))
        {
            *word = bytes
                .try_into()
                .map(u32::from_le_bytes)
                .map_err(|_| Errno::InvalidArgument)?;
        }
        Ok(words)
    }

    fn write(&mut self, pointer: u32, bytes: &[u8]) -> Outcome<()> {
        self.memory
            .write(&mut *self.caller, pointer as usize, bytes)
            .map_err(|_| Errno::InvalidArgument)
    }

    fn tensor(&self, pointer: u32) -> Outcome<Tensor> {
        let [dims, rank, ty, data, length] = self.words::<5>(pointer)?;
        if rank as usize > Tensor::MAX_RANK {
            return Err(Errno::InvalidArgument);
        }
        let ty = match ty & 0xff {
            0 => TensorType::Fp16,
            1 => TensorType::Fp32,
            2 => TensorType::Fp64,
            3 => TensorType::U8,
            4 => TensorType::I32,
            5 => TensorType::I64,
            _ => return Err(Errno::InvalidArgument),
        };
        let dimensions = self
            .bytes(dims, rank * 4)?
            .chunks_exact(4)
            .map(|bytes| {
                bytes
                    .try_into()
                    .map(u32::from_le_bytes)
                    .map_err(|_| Errno::InvalidArgument)
            })
            .collect::<Outcome<_>>()?;
        Ok(Tensor {
            dimensions,
            ty,
            data: Bytes::copy_from_slice(self.bytes(data, length)?),
        })
    }
}

fn errno(outcome: Outcome<()>) -> i32 {
    match outcome {
        Ok(()) => Errno::Success as i32,
        Err(errno) => errno as i32,
    }
}

fn noted<T: WitxHost, R>(
    caller: &mut Caller<'_, T>,
    result: Result<R, InferenceError>,
) -> Outcome<R> {
    result.map_err(|error| {
        caller.data_mut().note(&error);
        Errno::from(&error)
    })
}

async fn load<T: WitxHost>(
    caller: &mut Caller<'_, T>,
    (builders, count, encoding, target, graph): (u32, u32, u32, u32, u32),
) -> Outcome<()> {
    // 1 is onnx, 5 autodetect; 0 is cpu.
    noted(
        caller,
        check_target(matches!(encoding & 0xff, 1 | 5), target & 0xff == 0),
    )?;
    if count != 1 {
        return Err(Errno::InvalidArgument);
    }
    let model = {
        let memory = Memory::of(caller)?;
        let [pointer, length] = memory.words::<2>(builders)?;
        memory.bytes(pointer, length)?.to_vec()
    };
    let loaded = caller.data_mut().nn().0.load(vec![model]).await;
    let lease = noted(caller, loaded)?;
    let handle = caller.data_mut().nn().1.add_graph(lease)?;
    Memory::of(caller)?.write(graph, &handle.to_le_bytes())
}

fn load_by_name<T: WitxHost>(
    caller: &mut Caller<'_, T>,
    (name, length, graph): (u32, u32, u32),
) -> Outcome<()> {
    let name = String::from_utf8_lossy(Memory::of(caller)?.bytes(name, length)?).into_owned();
    let found = caller.data_mut().nn().0.load_by_name(&name);
    let lease = noted(caller, found)?;
    let handle = caller.data_mut().nn().1.add_graph(lease)?;
    Memory::of(caller)?.write(graph, &handle.to_le_bytes())
}

fn init_execution_context<T: WitxHost>(
    caller: &mut Caller<'_, T>,
    (graph, context): (u32, u32),
) -> Outcome<()> {
    let handles = caller.data_mut().nn().1;
    let graph = handles
        .graphs
        .get(&graph)
        .cloned()
        .ok_or(Errno::InvalidArgument)?;
    let handle = handles.handle()?;
    handles.contexts.insert(
        handle,
        Context {
            graph,
            inputs: BTreeMap::new(),
            outputs: Vec::new(),
        },
    );
    Memory::of(caller)?.write(context, &handle.to_le_bytes())
}

fn set_input<T: WitxHost>(
    caller: &mut Caller<'_, T>,
    (context, index, tensor): (u32, u32, u32),
) -> Outcome<()> {
    let tensor = Memory::of(caller)?.tensor(tensor)?;
    noted(caller, tensor.check())?;
    if index as usize
        >= caller
            .data_mut()
            .nn()
            .1
            .context(context)?
            .graph
            .info
            .inputs
            .len()
    {
        return Err(Errno::InvalidArgument);
    }
    let held = caller.data_mut().nn().0.hold(tensor);
    let held = noted(caller, held)?;
    caller
        .data_mut()
        .nn()
        .1
        .context(context)?
        .inputs
        .insert(index, held);
    Ok(())
}

async fn compute<T: WitxHost>(caller: &mut Caller<'_, T>, context: u32) -> Outcome<()> {
    let (nn, handles) = caller.data_mut().nn();
    let context_state = handles.context(context)?;
    // What the last compute gave is over.
    context_state.outputs.clear();
    let graph = context_state.graph.clone();
    let mut named = Vec::new();
    let mut charges = Vec::new();
    for (index, held) in std::mem::take(&mut context_state.inputs) {
        if let Some(port) = graph.info.inputs.get(index as usize) {
            let (tensor, charge) = held.into_parts();
            named.push((port.name.clone(), tensor));
            charges.push(charge);
        }
    }
    let computed = nn.compute(&graph, named).await;
    drop(charges);
    let held = computed.and_then(|outputs| {
        outputs
            .into_iter()
            .map(|(_, tensor)| nn.hold(tensor))
            .collect::<Result<Vec<_>, _>>()
    });
    let outputs = noted(caller, held)?;
    caller.data_mut().nn().1.context(context)?.outputs = outputs;
    Ok(())
}

fn get_output<T: WitxHost>(
    caller: &mut Caller<'_, T>,
    (context, index, buffer, capacity, written): (u32, u32, u32, u32, u32),
) -> Outcome<()> {
    let data = {
        let context = caller.data_mut().nn().1.context(context)?;
        context
            .outputs
            .get(index as usize)
            .map(|held| held.tensor.data.clone())
            .ok_or(Errno::InvalidArgument)?
    };
    let length = u32::try_from(data.len()).map_err(|_| Errno::TooLarge)?;
    if length > capacity {
        return Err(Errno::TooLarge);
    }
    let mut memory = Memory::of(caller)?;
    memory.write(buffer, &data)?;
    memory.write(written, &length.to_le_bytes())
}

/// Adds the module to a linker of core modules.
pub(crate) fn add_to_linker<T: WitxHost>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        MODULE,
        "load",
        |mut caller: Caller<'_, T>, args: (u32, u32, u32, u32, u32)| {
            Box::new(async move { errno(load(&mut caller, args).await) })
        },
    )?;
    linker.func_wrap(
        MODULE,
        "load_by_name",
        |mut caller: Caller<'_, T>, a: u32, b: u32, c: u32| {
            errno(load_by_name(&mut caller, (a, b, c)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "init_execution_context",
        |mut caller: Caller<'_, T>, a: u32, b: u32| {
            errno(init_execution_context(&mut caller, (a, b)))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "set_input",
        |mut caller: Caller<'_, T>, a: u32, b: u32, c: u32| {
            errno(set_input(&mut caller, (a, b, c)))
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "compute",
        |mut caller: Caller<'_, T>, (context,): (u32,)| {
            Box::new(async move { errno(compute(&mut caller, context).await) })
        },
    )?;
    linker.func_wrap(
        MODULE,
        "get_output",
        |mut caller: Caller<'_, T>, a: u32, b: u32, c: u32, d: u32, e: u32| {
            errno(get_output(&mut caller, (a, b, c, d, e)))
        },
    )?;
    Ok(())
}
