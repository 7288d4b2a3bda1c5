//! `wasi:nn@0.2.0-rc-2024-10-28`, the WIT of WebAssembly/wasi-nn, for components.

use super::{HeldTensor, ModelLease, NnContext, check_target};
use crate::sharing::{begin_turn, end_turn};
use crate::state::ComponentState;
use bytes::Bytes;
use fnctl_core::inference::{self, InferenceError, InferenceErrorKind};
use std::sync::Arc;
use wasmtime::StoreContextMut;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
mod bindings {
    wasmtime::component::bindgen!({
        world: "ml",
        path: "../wit/nn/wasi-nn.wit",
        with: {
            "wasi:nn/graph.graph": super::Graph,
            "wasi:nn/tensor.tensor": super::HostTensor,
            "wasi:nn/inference.graph-execution-context": super::ExecutionContext,
            "wasi:nn/errors.error": super::HostError,
        },
        imports: {
            default: trappable,
            "wasi:nn/graph.load": async | trappable,
            "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
        },
    });
}
use bindings::wasi::nn::{errors, graph, inference as contexts, tensor};

/// A loaded model in a guest's hands.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Graph(Arc<ModelLease>);

/// A graph that is ready to compute.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct ExecutionContext(Arc<ModelLease>);

/// A tensor in a guest's hands.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct HostTensor(HeldTensor);

/// An error in a guest's hands.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct HostError(InferenceError);

/// What the host functions work on.
pub(crate) struct NnView<'a> {
    nn: &'a mut NnContext,
    table: &'a mut ResourceTable,
}

struct HasNn;

impl HasData for HasNn {
    type Data<'a> = NnView<'a>;
}

/// Adds all four interfaces.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    graph::add_to_linker::<_, HasNn>(linker, view)?;
    tensor::add_to_linker::<_, HasNn>(linker, view)?;
    contexts::add_to_linker::<_, HasNn>(linker, view)?;
    errors::add_to_linker::<_, HasNn>(linker, view)
}

/// Adds the functions that wait for a model again, asking which request they are called for.
pub(crate) fn add_attributed(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    type Builders = Vec<graph::GraphBuilder>;
    type Named = Vec<contexts::NamedTensor>;
    linker
        .instance("wasi:nn/graph@0.2.0-rc-2024-10-28")?
        .func_wrap_async(
            "load",
            |mut store: StoreContextMut<'_, ComponentState>,
             (builders, encoding, target): (
                Builders,
                graph::GraphEncoding,
                graph::ExecutionTarget,
            )| {
                Box::new(async move {
                    begin_turn(&mut store)?;
                    let mut nn = view(store.data_mut());
                    let loaded = graph::Host::load(&mut nn, builders, encoding, target).await;
                    end_turn(&mut store);
                    Ok((loaded?,))
                })
            },
        )?;
    linker
        .instance("wasi:nn/inference@0.2.0-rc-2024-10-28")?
        .func_wrap_async(
            "[method]graph-execution-context.compute",
            |mut store: StoreContextMut<'_, ComponentState>,
             (context, inputs): (Resource<ExecutionContext>, Named)| {
                Box::new(async move {
                    begin_turn(&mut store)?;
                    let mut nn = view(store.data_mut());
                    let computed =
                        contexts::HostGraphExecutionContext::compute(&mut nn, context, inputs)
                            .await;
                    end_turn(&mut store);
                    Ok((computed?,))
                })
            },
        )
}

fn view(state: &mut ComponentState) -> NnView<'_> {
    NnView {
        nn: &mut state.guest.nn,
        table: &mut state.table,
    }
}

type Answer<T> = wasmtime::Result<Result<Resource<T>, Resource<HostError>>>;

impl NnView<'_> {
    fn answer<T: Send + 'static>(&mut self, result: Result<T, InferenceError>) -> Answer<T> {
        Ok(match result {
            Ok(value) => Ok(self.table.push(value)?),
            Err(error) => Err(self.table.push(HostError(error))?),
        })
    }
}

impl graph::Host for NnView<'_> {
    async fn load(
        &mut self,
        builders: Vec<graph::GraphBuilder>,
        encoding: graph::GraphEncoding,
        target: graph::ExecutionTarget,
    ) -> Answer<Graph> {
        use graph::{ExecutionTarget, GraphEncoding};
        let is_onnx = matches!(encoding, GraphEncoding::Onnx | GraphEncoding::Autodetect);
        let loaded = match check_target(is_onnx, matches!(target, ExecutionTarget::Cpu)) {
            Ok(()) => self.nn.load(builders).await,
            Err(error) => Err(error),
        };
        self.answer(loaded.map(Graph))
    }

    fn load_by_name(&mut self, name: String) -> Answer<Graph> {
        let found = self.nn.load_by_name(&name);
        self.answer(found.map(Graph))
    }
}

impl graph::HostGraph for NnView<'_> {
    fn init_execution_context(&mut self, graph: Resource<Graph>) -> Answer<ExecutionContext> {
        let lease = self.table.get(&graph)?.0.clone();
        self.answer(Ok(ExecutionContext(lease)))
    }

    fn drop(&mut self, graph: Resource<Graph>) -> wasmtime::Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl contexts::Host for NnView<'_> {}

impl contexts::HostGraphExecutionContext for NnView<'_> {
    async fn compute(
        &mut self,
        context: Resource<ExecutionContext>,
        inputs: Vec<contexts::NamedTensor>,
    ) -> wasmtime::Result<Result<Vec<contexts::NamedTensor>, Resource<HostError>>> {
        let lease = self.table.get(&context)?.0.clone();
        let mut named = Vec::with_capacity(inputs.len());
        let mut charges = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            // `own<tensor>`: the guest gave the tensor away, so its bytes move and are not copied.
            let (tensor, charge) = self.table.delete(tensor)?.0.into_parts();
            named.push((name, tensor));
            charges.push(charge);
        }
        let computed = self.nn.compute(&lease, named).await;
        drop(charges);
        let held = computed.and_then(|outputs| {
            outputs
                .into_iter()
                .map(|(name, tensor)| Ok((name, self.nn.hold(tensor)?)))
                .collect::<Result<Vec<_>, _>>()
        });
        match held {
            Ok(outputs) => {
                let mut named = Vec::with_capacity(outputs.len());
                for (name, tensor) in outputs {
                    named.push((name, self.table.push(HostTensor(tensor))?));
                }
                Ok(Ok(named))
            }
            Err(error) => Ok(Err(self.table.push(HostError(error))?)),
        }
    }

    fn drop(&mut self, context: Resource<ExecutionContext>) -> wasmtime::Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

impl tensor::Host for NnView<'_> {}

impl tensor::HostTensor for NnView<'_> {
    fn new(
        &mut self,
        dimensions: tensor::TensorDimensions,
        ty: tensor::TensorType,
        data: tensor::TensorData,
    ) -> wasmtime::Result<Resource<HostTensor>> {
        // The constructor has no way to fail: shape and length are checked when the tensor is computed with.
        // One tensor too many is a trap, as memory that cannot be had is for most guests.
        let tensor = inference::Tensor {
            dimensions,
            ty: ty.into(),
            data: Bytes::from(data),
        };
        let held = self
            .nn
            .hold(tensor)
            .map_err(|error| wasmtime::Error::msg(error.message))?;
        Ok(self.table.push(HostTensor(held))?)
    }

    fn dimensions(
        &mut self,
        tensor: Resource<HostTensor>,
    ) -> wasmtime::Result<tensor::TensorDimensions> {
        Ok(self.table.get(&tensor)?.0.tensor.dimensions.clone())
    }

    fn ty(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<tensor::TensorType> {
        Ok(self.table.get(&tensor)?.0.tensor.ty.into())
    }

    fn data(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<tensor::TensorData> {
        Ok(self.table.get(&tensor)?.0.tensor.data.to_vec())
    }

    fn drop(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<()> {
        self.table.delete(tensor)?;
        Ok(())
    }
}

impl errors::Host for NnView<'_> {}

impl errors::HostError for NnView<'_> {
    fn code(&mut self, error: Resource<HostError>) -> wasmtime::Result<errors::ErrorCode> {
        Ok(match self.table.get(&error)?.0.kind {
            InferenceErrorKind::InvalidArgument => errors::ErrorCode::InvalidArgument,
            InferenceErrorKind::InvalidEncoding => errors::ErrorCode::InvalidEncoding,
            InferenceErrorKind::Timeout => errors::ErrorCode::Timeout,
            InferenceErrorKind::Runtime
            | InferenceErrorKind::Unavailable
            | InferenceErrorKind::Quarantined => errors::ErrorCode::RuntimeError,
            InferenceErrorKind::Unsupported => errors::ErrorCode::UnsupportedOperation,
            InferenceErrorKind::TooLarge => errors::ErrorCode::TooLarge,
            InferenceErrorKind::NotFound => errors::ErrorCode::NotFound,
            InferenceErrorKind::Security => errors::ErrorCode::Security,
        })
    }

    fn data(&mut self, error: Resource<HostError>) -> wasmtime::Result<String> {
        Ok(self.table.get(&error)?.0.message.clone())
    }

    fn drop(&mut self, error: Resource<HostError>) -> wasmtime::Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

impl From<tensor::TensorType> for inference::TensorType {
    fn from(ty: tensor::TensorType) -> Self {
        match ty {
            tensor::TensorType::Fp16 => Self::Fp16,
            tensor::TensorType::Fp32 => Self::Fp32,
            tensor::TensorType::Fp64 => Self::Fp64,
            tensor::TensorType::Bf16 => Self::Bf16,
            tensor::TensorType::U8 => Self::U8,
            tensor::TensorType::I32 => Self::I32,
            tensor::TensorType::I64 => Self::I64,
        }
    }
}

impl From<inference::TensorType> for tensor::TensorType {
    fn from(ty: inference::TensorType) -> Self {
        match ty {
            inference::TensorType::Fp16 => Self::Fp16,
            inference::TensorType::Fp32 => Self::Fp32,
            inference::TensorType::Fp64 => Self::Fp64,
            inference::TensorType::Bf16 => Self::Bf16,
            inference::TensorType::U8 => Self::U8,
            inference::TensorType::I32 => Self::I32,
            inference::TensorType::I64 => Self::I64,
        }
    }
}
