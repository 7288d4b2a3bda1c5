//! Tensors with typed elements.

use crate::error::Error;

/// The element types of wasi-nn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    /// IEEE 754 half precision, as its bits.
    Fp16,
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// bfloat16, as its bits.
    Bf16,
    /// Unsigned byte.
    U8,
    /// Signed, 32 bit.
    I32,
    /// Signed, 64 bit.
    I64,
}

/// A Rust type that is an element type.
pub trait Element: Copy {
    /// Which one.
    const TYPE: TensorType;
    /// Appends the element, little-endian.
    fn write(self, bytes: &mut Vec<u8>);
    /// Reads elements from their bytes.
    fn read(bytes: &[u8]) -> Vec<Self>;
}

macro_rules! element {
    ($($rust:ty => $ty:ident),*) => {$(
        impl Element for $rust {
            const TYPE: TensorType = TensorType::$ty;
            fn write(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Vec<Self> {
                bytes.chunks_exact(size_of::<Self>()).filter_map(|chunk| chunk.try_into().ok().map(Self::from_le_bytes)).collect()
            }
        }
    )*};
}

element!(f32 => Fp32, f64 => Fp64, u8 => U8, i32 => I32, i64 => I64);

/// A dense tensor: dimensions, an element type, and the elements row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub(crate) dimensions: Vec<u32>,
    pub(crate) ty: TensorType,
    pub(crate) data: Vec<u8>,
}

impl Tensor {
    /// A tensor of elements; their number must be the product of the dimensions.
    pub fn new<E: Element>(
        dimensions: impl AsRef<[usize]>,
        elements: impl AsRef<[E]>,
    ) -> Result<Self, Error> {
        let (dimensions, elements) = (dimensions.as_ref(), elements.as_ref());
        let wanted: Option<usize> = dimensions
            .iter()
            .try_fold(1usize, |all, one| all.checked_mul(*one));
        if wanted != Some(elements.len()) {
            return Err(Error::bad_request(format!(
                "{} elements do not fill a tensor of shape {dimensions:?}",
                elements.len()
            )));
        }
        let mut data = Vec::with_capacity(size_of_val(elements));
        elements.iter().for_each(|element| element.write(&mut data));
        Self::from_bytes(dimensions, E::TYPE, data)
    }

    /// A tensor of one element without dimensions, as models call a scalar.
    pub fn scalar<E: Element>(element: E) -> Self {
        let mut data = Vec::new();
        element.write(&mut data);
        Self {
            dimensions: Vec::new(),
            ty: E::TYPE,
            data,
        }
    }

    /// A tensor of raw little-endian bytes; the way to make half precision ones.
    pub fn from_bytes(
        dimensions: impl AsRef<[usize]>,
        ty: TensorType,
        data: Vec<u8>,
    ) -> Result<Self, Error> {
        let dimensions = dimensions
            .as_ref()
            .iter()
            .map(|size| u32::try_from(*size))
            .collect::<Result<_, _>>();
        let dimensions = dimensions
            .map_err(|_| Error::bad_request("a dimension is larger than wasi-nn allows"))?;
        Ok(Self {
            dimensions,
            ty,
            data,
        })
    }

    /// The sizes of the dimensions.
    pub fn dimensions(&self) -> Vec<usize> {
        self.dimensions.iter().map(|size| *size as usize).collect()
    }

    /// The element type.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// The elements.
    pub fn elements<E: Element>(&self) -> Result<Vec<E>, Error> {
        if self.ty == E::TYPE {
            Ok(E::read(&self.data))
        } else {
            Err(Error::internal(format!(
                "the tensor holds {:?}, not {:?}",
                self.ty,
                E::TYPE
            )))
        }
    }

    /// The raw bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_come_back_as_they_went_in() {
        let tensor = Tensor::new([2, 2], [1.0f32, -2.5, 3.0, 4.0]).unwrap();
        assert_eq!(tensor.dimensions(), [2, 2]);
        assert_eq!(tensor.elements::<f32>().unwrap(), [1.0, -2.5, 3.0, 4.0]);
        assert!(tensor.elements::<i64>().is_err());
        assert_eq!(
            Tensor::scalar(16_000i64).elements::<i64>().unwrap(),
            [16_000]
        );
    }

    #[test]
    fn a_wrong_number_of_elements_is_an_error() {
        assert!(Tensor::new([2, 2], [1i32, 2, 3]).is_err());
        assert!(Tensor::new([usize::MAX, 2], [1i32]).is_err());
    }
}
