import type { ModelErrorKind, Tensor } from './index.js';

/** What a model throws in a test: an error code of wasi-nn, and the platform's text. */
export function failure(code: ModelErrorKind, text: string): Error;

/** Makes `Model.load(name)` succeed, with a model that answers as `compute(inputs)` says: tensors by name, both ways. */
export function setModel(name: string, compute: (inputs: Record<string, Tensor<any>>) => Record<string, Tensor>): void;

/** What `environment()` gives. */
export function setEnvironment(values: Record<string, string>): void;
