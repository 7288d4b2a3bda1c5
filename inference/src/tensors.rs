//! Tensors across the C API, without copies where the bytes allow it.

use bytes::Bytes;
use fnctl_core::inference::{InferenceError, InferenceErrorKind, Port, Tensor, TensorType};
use ort::sys::{ONNXTensorElementDataType as Element, OrtStatusPtr, OrtValue};
use ort::value::{TensorElementType, ValueType};
use std::ffi::CStr;
use std::ptr::{self, NonNull};

/// Turns a status of the C API into a result, and releases it.
pub(crate) fn status(status: OrtStatusPtr) -> Result<(), InferenceError> {
    if status.0.is_null() {
        return Ok(());
    }
    let api = ort::api();
    // SAFETY: the status is not null, its message is a C string that lives until it is released, which happens once.
    let message = unsafe {
        let message = CStr::from_ptr((api.GetErrorMessage)(status.0))
            .to_string_lossy()
            .into_owned();
        (api.ReleaseStatus)(status.0);
        message
    };
    Err(InferenceError::new(InferenceErrorKind::Runtime, message))
}

pub(crate) fn element(ty: TensorType) -> Element {
    match ty {
        TensorType::Fp16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        TensorType::Fp32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        TensorType::Fp64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        TensorType::Bf16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        TensorType::U8 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        TensorType::I32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        TensorType::I64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
    }
}

fn tensor_type(ty: Element) -> Option<TensorType> {
    Some(match ty {
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 => TensorType::Fp16,
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT => TensorType::Fp32,
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE => TensorType::Fp64,
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 => TensorType::Bf16,
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 => TensorType::U8,
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 => TensorType::I32,
        Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 => TensorType::I64,
        _ => return None,
    })
}

/// What wasi-nn can say of an input or output; nothing if its type has no word there.
pub(crate) fn port(name: &str, value: &ValueType) -> Option<Port> {
    let ValueType::Tensor { ty, shape, .. } = value else {
        return None;
    };
    let ty = match ty {
        TensorElementType::Float16 => TensorType::Fp16,
        TensorElementType::Float32 => TensorType::Fp32,
        TensorElementType::Float64 => TensorType::Fp64,
        TensorElementType::Bfloat16 => TensorType::Bf16,
        TensorElementType::Uint8 => TensorType::U8,
        TensorElementType::Int32 => TensorType::I32,
        TensorElementType::Int64 => TensorType::I64,
        _ => return None,
    };
    Some(Port {
        name: name.to_owned(),
        ty,
        shape: shape.iter().copied().collect(),
    })
}

/// An owned `OrtValue`.
pub(crate) struct Value(NonNull<OrtValue>);

// SAFETY: an OrtValue is plain memory with an owner; ONNX Runtime ties it to no thread.
unsafe impl Send for Value {}
// SAFETY: it is only read through a shared reference.
unsafe impl Sync for Value {}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: this is the one owner.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// An input: ONNX Runtime reads the guest's bytes where they are.
pub(crate) struct Input {
    value: Value,
    /// Keeps the bytes that `value` points to.
    data: Bytes,
}

impl Input {
    /// The tensor as an `OrtValue`. `shape` is what the model wants it to be called.
    pub(crate) fn new(tensor: Tensor, shape: &[i64]) -> Result<Self, InferenceError> {
        let data = aligned(tensor.data, tensor.ty.size());
        // SAFETY: the data outlives the value (`data`), its length was checked against shape and type, and ONNX Runtime
        // only reads from the inputs of a run.
        let value = unsafe { Value::over(data.as_ptr().cast_mut(), data.len(), shape, tensor.ty)? };
        Ok(Self { value, data })
    }

    pub(crate) fn as_ptr(&self) -> *const OrtValue {
        self.value.0.as_ptr()
    }

    /// Whether an address lies in this input's bytes.
    fn contains(&self, address: *const u8) -> bool {
        self.data.as_ptr_range().contains(&address)
    }
}

/// The same bytes at an address that is a multiple of `size`. The guest's buffers nearly always are.
fn aligned(data: Bytes, size: usize) -> Bytes {
    if data.is_empty() || data.as_ptr().align_offset(size) == 0 {
        return data;
    }
    let mut words = vec![0u64; data.len().div_ceil(8)];
    for (word, chunk) in words.iter_mut().zip(data.chunks(8)) {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(chunk) {
            *to = *from;
        }
        *word = u64::from_ne_bytes(bytes);
    }
    Bytes::from_owner(Words {
        words,
        length: data.len(),
    })
}

struct Words {
    words: Vec<u64>,
    length: usize,
}

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `words` holds at least `length` initialised bytes, and a byte has no alignment.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.length) }
    }
}

impl Value {
    /// A tensor over memory that is there already.
    ///
    /// # Safety
    /// `data` must be aligned for the type and point to `length` bytes that may be read, and written if the tensor is an
    /// output, for as long as the value lives; the length must be that of shape and type.
    pub(crate) unsafe fn over(
        data: *mut u8,
        length: usize,
        shape: &[i64],
        ty: TensorType,
    ) -> Result<Self, InferenceError> {
        let api = ort::api();
        let mut info = ptr::null_mut();
        let mut value = ptr::null_mut();
        // SAFETY: what the caller promises of the data; shape has the length that is passed. The memory info is copied,
        // and released here.
        unsafe {
            status((api.CreateCpuMemoryInfo)(
                ort::sys::OrtAllocatorType::OrtDeviceAllocator,
                ort::sys::OrtMemType::OrtMemTypeDefault,
                &mut info,
            ))?;
            let made = status((api.CreateTensorWithDataAsOrtValue)(
                info,
                data.cast(),
                length,
                shape.as_ptr(),
                shape.len(),
                element(ty),
                &mut value,
            ));
            (api.ReleaseMemoryInfo)(info);
            made?;
        }
        Self::own(value)
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn as_ptr(&self) -> *mut OrtValue {
        self.0.as_ptr()
    }

    /// Takes ownership of a value the C API made.
    pub(crate) fn own(value: *mut OrtValue) -> Result<Self, InferenceError> {
        NonNull::new(value).map(Self).ok_or_else(|| {
            InferenceError::new(InferenceErrorKind::Runtime, "ONNX Runtime gave no value")
        })
    }

    /// The output as a tensor; its bytes stay where ONNX Runtime wrote them until the guest has read them.
    ///
    /// A graph may name an input as its output, and ONNX Runtime then hands the input's own memory back, which lives no
    /// longer than `inputs`: such an output is copied.
    pub(crate) fn into_tensor(self, inputs: &[(usize, Input)]) -> Result<Tensor, InferenceError> {
        let api = ort::api();
        let mut info = ptr::null_mut();
        let mut ty = Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let mut rank = 0;
        let mut count = 0;
        let mut shape;
        // SAFETY: plain reads of a tensor value's type and shape; `shape` has the length that is passed.
        unsafe {
            status((api.GetTensorTypeAndShape)(self.0.as_ptr(), &mut info))?;
            let read = || -> Result<Vec<i64>, InferenceError> {
                status((api.GetTensorElementType)(info, &mut ty))?;
                status((api.GetDimensionsCount)(info, &mut rank))?;
                let mut shape = vec![0i64; rank];
                status((api.GetDimensions)(info, shape.as_mut_ptr(), rank))?;
                status((api.GetTensorShapeElementCount)(info, &mut count))?;
                Ok(shape)
            }();
            (api.ReleaseTensorTypeAndShapeInfo)(info);
            shape = read?;
        }
        let unsupported = || {
            InferenceError::new(
                InferenceErrorKind::Unsupported,
                "an output's type or shape has no word in wasi-nn",
            )
        };
        let ty = tensor_type(ty).ok_or_else(unsupported)?;
        let dimensions = shape
            .drain(..)
            .map(|size| u32::try_from(size).map_err(|_| unsupported()))
            .collect::<Result<Vec<_>, _>>()?;
        let length = count.checked_mul(ty.size()).ok_or_else(unsupported)?;
        let mut data = ptr::null_mut();
        // SAFETY: the value is a tensor; the pointer is valid as long as the value, which `OutputBytes` owns.
        unsafe { status((api.GetTensorMutableData)(self.0.as_ptr(), &mut data))? };
        let data = match NonNull::new(data.cast::<u8>()) {
            Some(data)
                if length > 0
                    && inputs
                        .iter()
                        .any(|(_, input)| input.contains(data.as_ptr())) =>
            {
                // SAFETY: the input that the bytes lie in is borrowed, and holds `length` of them from here: the value
                // was made over it with this very shape and type.
                Bytes::copy_from_slice(unsafe { std::slice::from_raw_parts(data.as_ptr(), length) })
            }
            Some(data) if length > 0 => Bytes::from_owner(OutputBytes {
                data,
                length,
                _value: self,
            }),
            _ => Bytes::new(),
        };
        Ok(Tensor {
            dimensions,
            ty,
            data,
        })
    }
}

struct OutputBytes {
    data: NonNull<u8>,
    length: usize,
    _value: Value,
}

// SAFETY: the bytes belong to `_value`, which may be sent, and are only read.
unsafe impl Send for OutputBytes {}
// SAFETY: as above.
unsafe impl Sync for OutputBytes {}

impl AsRef<[u8]> for OutputBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `_value` keeps `length` initialised bytes at `data`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_at_an_odd_address_are_moved_to_an_aligned_one() {
        let all = Bytes::from((0..=200u8).collect::<Vec<_>>());
        for start in 0..8 {
            let odd = all.slice(start..start + 24);
            let even = aligned(odd.clone(), 8);
            assert_eq!(even, odd);
            assert_eq!(even.as_ptr().align_offset(8), 0);
        }
        assert!(aligned(Bytes::new(), 8).is_empty());
    }
}
