/** Tensors with typed elements. */

// The element types of wasi-nn: bytes of one element, and how it is written and read; half precisions are raw bytes.
const TYPES = {
  FP16: { size: 2 },
  BF16: { size: 2 },
  FP32: { size: 4, array: Float32Array, write: 'setFloat32', read: 'getFloat32' },
  FP64: { size: 8, array: Float64Array, write: 'setFloat64', read: 'getFloat64' },
  U8: { size: 1, array: Uint8Array, write: 'setUint8', read: 'getUint8', min: 0, max: 255 },
  I32: { size: 4, array: Int32Array, write: 'setInt32', read: 'getInt32', min: -2147483648, max: 2147483647 },
  I64: { size: 8, array: BigInt64Array, write: 'setBigInt64', read: 'getBigInt64' },
};

/** A dense tensor: dimensions, an element type, and the elements row by row as little-endian bytes. */
export class Tensor {
  /**
   * A tensor of raw bytes; the way to make half precision ones. Throws a RangeError if they do not fill the shape.
   */
  constructor(dimensions, type, data) {
    const known = TYPES[type];
    if (!known) throw new TypeError(`'${type}' is no tensor type; use one of ${Object.keys(TYPES).join(', ')}`);
    // No instanceof: what the platform returns belongs to another realm, with a Uint8Array of its own.
    if (!ArrayBuffer.isView(data)) throw new TypeError('the data of a tensor must be a Uint8Array');
    let wanted = known.size;
    for (const size of dimensions) {
      if (!Number.isInteger(size) || size < 0 || size > 0xffffffff) {
        throw new RangeError(`a dimension must be a whole number from 0 to 4294967295, not ${size}`);
      }
      wanted *= size;
    }
    if (wanted !== data.byteLength) {
      const elements = Math.floor(data.byteLength / known.size);
      throw new RangeError(`${elements} elements do not fill a tensor of shape [${[...dimensions]}]; check the shape`);
    }
    this.dimensions = Array.from(dimensions);
    this.type = type;
    this.data = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  }

  /** A tensor of numbers (of BigInts for I64). Throws if they do not fill the shape or do not fit the type. */
  static of(type, dimensions, elements) {
    const known = TYPES[type];
    if (!known?.array) throw new TypeError(`JavaScript has no ${type} numbers; give the raw bytes to new Tensor(...)`);
    const list = Array.isArray(elements) || ArrayBuffer.isView(elements) ? elements : Array.from(elements);
    const data = new Uint8Array(list.length * known.size);
    const view = new DataView(data.buffer);
    for (let i = 0; i < list.length; i++) {
      view[known.write](i * known.size, checked(type, known, list[i]), true);
    }
    return new Tensor(dimensions, type, data);
  }

  /** A tensor of single precision numbers. */
  static f32(dimensions, elements) {
    return Tensor.of('FP32', dimensions, elements);
  }

  /** A tensor of double precision numbers. */
  static f64(dimensions, elements) {
    return Tensor.of('FP64', dimensions, elements);
  }

  /** A tensor of unsigned bytes. */
  static u8(dimensions, elements) {
    return Tensor.of('U8', dimensions, elements);
  }

  /** A tensor of signed 32-bit numbers. */
  static i32(dimensions, elements) {
    return Tensor.of('I32', dimensions, elements);
  }

  /** A tensor of signed 64-bit numbers: BigInts, or whole numbers. */
  static i64(dimensions, elements) {
    return Tensor.of('I64', dimensions, elements);
  }

  /** The elements, row by row, as a typed array. Throws for the half precisions; their bytes are `data`. */
  elements() {
    const known = TYPES[this.type];
    if (!known.array) throw new TypeError(`JavaScript has no ${this.type} numbers; read the raw bytes from .data`);
    const view = new DataView(this.data.buffer, this.data.byteOffset, this.data.byteLength);
    const elements = new known.array(this.data.byteLength / known.size);
    for (let i = 0; i < elements.length; i++) elements[i] = view[known.read](i * known.size, true);
    return elements;
  }
}

function checked(type, known, element) {
  if (type === 'I64') {
    const whole = typeof element === 'bigint' ? element : Number.isSafeInteger(element) ? BigInt(element) : undefined;
    if (whole === undefined || BigInt.asIntN(64, whole) !== whole) {
      throw new RangeError(`${String(element)} is no I64 number; use whole numbers or BigInts`);
    }
    return whole;
  }
  const whole = known.min === undefined || (Number.isInteger(element) && element >= known.min && element <= known.max);
  if (typeof element !== 'number' || !whole) throw new RangeError(`${String(element)} is no ${type} number`);
  return element;
}
