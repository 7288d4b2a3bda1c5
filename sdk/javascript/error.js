/** Errors that become responses. */

/** A failed request: a status (400 to 599) and a text for the caller. */
export class FunctionError extends Error {
  constructor(status, message) {
    super(message);
    this.name = 'FunctionError';
    this.status = status >= 400 && status < 600 ? status : 500;
  }
}

/** 400: the caller's input is wrong. */
export class BadRequest extends FunctionError {
  constructor(message) {
    super(400, message);
    this.name = 'BadRequest';
  }
}

// The error codes of wasi-nn: the status of the response, and what to do next.
const KINDS = {
  'invalid-argument': [400, 'give each input the name, type and shape that the model declares'],
  'invalid-encoding': [500, 'the platform runs ONNX models; export the model to ONNX'],
  'timeout': [504, 'raise `timeout` in function.toml, or send less in one request'],
  'runtime-error': [500, "read the function's log lines of this request"],
  'unsupported-operation': [500, 'use a model and a target that the platform supports (ONNX, cpu)'],
  'too-large': [500, 'send smaller tensors, or raise `memory` in function.toml'],
  'not-found': [500, 'declare the model under [models] in function.toml and deploy again'],
  'security': [500, "ask the platform's operator: the model may not be used this way"],
  'unknown': [500, "read the function's log lines of this request"],
};

/** The platform's inference failed. `kind` is the error code of wasi-nn, such as `not-found`. */
export class ModelError extends FunctionError {
  constructor(kind, text) {
    const [status, step] = KINDS[kind] ?? KINDS.unknown;
    super(status, `${kind}: ${text}; ${step}`);
    this.name = 'ModelError';
    this.kind = kind;
  }
}

/** Calls the platform; its wasi-nn errors (thrown as `{ payload }`) become ModelErrors that name `what`. */
export function calling(what, call) {
  try {
    return call();
  } catch (thrown) {
    const error = thrown?.payload;
    if (typeof error?.code !== 'function') throw thrown;
    const failure = new ModelError(error.code(), `${what}: ${error.data()}`);
    release(error);
    throw failure;
  }
}

/**
 * Gives a resource back to the platform now: a child before its parent. Waiting for the garbage collector is no way: it
 * sees little memory in a handle, and an instance may hold a few thousand of them.
 */
export function release(resource) {
  resource?.[Symbol.dispose ?? Symbol.for('dispose')]?.();
}
