/** The exports that the platform calls, over the Request and Response of the web. */

import { getEnvironment } from 'wasi:cli/environment@0.2.10';
import { Fields, OutgoingBody, OutgoingResponse, ResponseOutparam } from 'wasi:http/types@0.2.10';
import { FunctionError, release } from './error.js';

// What one read and one write of a wasi:io stream move at most; 4096 is the limit of blockingWriteAndFlush.
const READ = 64n * 1024n;
const WRITE = 4096;

/** The variables under [env] in function.toml. */
export function environment() {
  return Object.fromEntries(getEnvironment());
}

/** What an app answers, errors included: the function to call in a unit test. */
export async function answer(app, request) {
  try {
    const result = await app.handle(request);
    return result instanceof Response ? result : json(result);
  } catch (error) {
    if (error instanceof FunctionError) return json({ error: error.message }, error.status);
    // The caller learns no details; the log has them.
    console.error(error?.stack ? `${error}\n${error.stack}` : String(error));
    return json({ error: 'the function failed; its log has the error' }, 500);
  }
}

/**
 * The two exports of the component, from the class of an app.
 *
 * `new App()` is called once per instance, before its first request. Its `handle(request)` is called once per request
 * and returns a Response, or a value that becomes JSON. FunctionErrors become responses of their status.
 *
 * An instance answers many requests this way. The engine's own `addEventListener('fetch', ...)` answers one per
 * instance, so a function built on it needs `isolation = "request"` in function.toml.
 */
export function serve(App) {
  let app;
  return {
    incomingHandler: {
      async handle(incoming, out) {
        app ??= new App();
        let response;
        try {
          response = await answer(app, read(incoming));
        } catch (error) {
          response = json({ error: `the request cannot be read: ${error?.message ?? error}` }, 400);
        } finally {
          release(incoming);
        }
        await write(response, out);
      },
    },
    lifecycle: {
      init() {
        try {
          app ??= new App();
        } catch (error) {
          // A component-model error is a throw of its value: here the text that the caller of the start reads.
          throw String(error?.message ?? error);
        }
      },
    },
  };
}

function json(value, status = 200) {
  return new Response(JSON.stringify(value), { status, headers: { 'content-type': 'application/json' } });
}

function read(incoming) {
  const method = incoming.method();
  const name = method.tag === 'other' ? method.val : method.tag.toUpperCase();
  const headers = new Headers();
  const decoder = new TextDecoder();
  const fields = incoming.headers();
  for (const [key, value] of fields.entries()) headers.append(key, decoder.decode(value));
  release(fields);
  const url = `http://${incoming.authority() ?? 'localhost'}${incoming.pathWithQuery() ?? '/'}`;
  const body = readAll(incoming);
  const bodiless = name === 'GET' || name === 'HEAD';
  return new Request(url, { method: name, headers, body: bodiless ? undefined : body });
}

function readAll(incoming) {
  const body = incoming.consume();
  const stream = body.stream();
  const chunks = [];
  let length = 0;
  try {
    for (;;) {
      const chunk = stream.blockingRead(READ);
      chunks.push(chunk);
      length += chunk.byteLength;
    }
  } catch (error) {
    if (error?.payload?.tag !== 'closed') {
      release(error?.payload?.val);
      throw new Error('the body broke off');
    }
  } finally {
    release(stream);
    release(body);
  }
  const all = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.byteLength;
  }
  return all;
}

async function write(response, out) {
  const bytes = new Uint8Array(await response.arrayBuffer());
  const fields = new Fields();
  const encoder = new TextEncoder();
  fields.set('content-length', [encoder.encode(String(bytes.byteLength))]);
  for (const [name, value] of response.headers) {
    if (name === 'content-length') continue;
    try {
      fields.append(name, encoder.encode(value));
    } catch {
      // A header that HTTP or the host forbids is left out; the answer matters more.
      console.error(`the header '${name}' may not be sent`);
    }
  }
  const outgoing = new OutgoingResponse(fields);
  outgoing.setStatusCode(response.status);
  const body = outgoing.body();
  ResponseOutparam.set(out, { tag: 'ok', val: outgoing });
  const stream = body.write();
  try {
    for (let at = 0; at < bytes.byteLength; at += WRITE) {
      stream.blockingWriteAndFlush(bytes.subarray(at, at + WRITE));
    }
  } catch (error) {
    // The caller is gone; it needs no rest.
    release(error?.payload?.val);
  } finally {
    release(stream);
  }
  OutgoingBody.finish(body, undefined);
}
