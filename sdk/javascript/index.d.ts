/** The element types of wasi-nn. FP16 and BF16 are raw bytes here. */
export type TensorType = 'FP16' | 'FP32' | 'FP64' | 'BF16' | 'U8' | 'I32' | 'I64';

/** The typed array that holds the elements of a type. */
export interface Elements {
  FP32: Float32Array;
  FP64: Float64Array;
  U8: Uint8Array;
  I32: Int32Array;
  I64: BigInt64Array;
}

/** A dense tensor: dimensions, an element type, and the elements row by row as little-endian bytes. */
export class Tensor<T extends TensorType = TensorType> {
  readonly dimensions: number[];
  readonly type: T;
  readonly data: Uint8Array;

  /** A tensor of raw bytes; the way to make half precision ones. Throws a RangeError if they do not fill the shape. */
  constructor(dimensions: Iterable<number>, type: T, data: Uint8Array);

  /** A tensor of numbers (of BigInts for I64). Throws if they do not fill the shape or do not fit the type. */
  static of<T extends keyof Elements>(type: T, dimensions: Iterable<number>, elements: Iterable<number | bigint>): Tensor<T>;
  /** A tensor of single precision numbers. */
  static f32(dimensions: Iterable<number>, elements: Iterable<number>): Tensor<'FP32'>;
  /** A tensor of double precision numbers. */
  static f64(dimensions: Iterable<number>, elements: Iterable<number>): Tensor<'FP64'>;
  /** A tensor of unsigned bytes. */
  static u8(dimensions: Iterable<number>, elements: Iterable<number>): Tensor<'U8'>;
  /** A tensor of signed 32-bit numbers. */
  static i32(dimensions: Iterable<number>, elements: Iterable<number>): Tensor<'I32'>;
  /** A tensor of signed 64-bit numbers: BigInts, or whole numbers. */
  static i64(dimensions: Iterable<number>, elements: Iterable<number | bigint>): Tensor<'I64'>;

  /** The elements, row by row. Throws for the half precisions; their bytes are `data`. */
  elements(): T extends keyof Elements ? Elements[T] : never;
}

/** A loaded model. Load it when an instance starts, not at the top of a module. */
export class Model {
  readonly name: string;
  /** The model that `function.toml` declares under this name. Throws a ModelError if there is none. */
  static load(name: string): Model;
  /** Computes: inputs by name in, outputs by name out, in the model's order. Throws a ModelError. */
  run(inputs: Record<string, Tensor>): Record<string, Tensor<any>>;
}

/** A failed request: a status (400 to 599) and a text for the caller. */
export class FunctionError extends Error {
  readonly status: number;
  constructor(status: number, message: string);
}

/** 400: the caller's input is wrong. */
export class BadRequest extends FunctionError {
  constructor(message: string);
}

/** The error codes of wasi-nn. */
export type ModelErrorKind =
  | 'invalid-argument'
  | 'invalid-encoding'
  | 'timeout'
  | 'runtime-error'
  | 'unsupported-operation'
  | 'too-large'
  | 'not-found'
  | 'security'
  | 'unknown';

/** The platform's inference failed; the message says what to do next. */
export class ModelError extends FunctionError {
  readonly kind: ModelErrorKind;
  constructor(kind: ModelErrorKind, text: string);
}

/** What answers requests. A result that is no Response becomes JSON. */
export interface App {
  handle(request: Request): unknown;
}

/** The variables under [env] in function.toml. */
export function environment(): Record<string, string>;

/** What an app answers, errors included: the function to call in a unit test. */
export function answer(app: App, request: Request): Promise<Response>;

/** The two exports of the component, from the class of an app; `new App()` is called once per instance. */
export function serve(App: new () => App): { incomingHandler: object; lifecycle: object };
