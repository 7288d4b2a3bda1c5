/**
 * What a function written in JavaScript imports: models, tensors, and the exports that the platform calls.
 *
 *     import { Model, Tensor, serve } from '../sdk/index.js';
 *
 *     export class App {
 *       constructor() { this.model = Model.load('digits'); }            // once per instance
 *       async handle(request) {                                         // once per request
 *         const { pixels } = await request.json();
 *         const outputs = this.model.run({ pixels: Tensor.f32([1, 64], pixels) });
 *         return { probabilities: Array.from(outputs.probabilities.elements()) };
 *       }
 *     }
 *     export const { incomingHandler, lifecycle } = serve(App);
 *
 * Built with componentize-js, this is an ordinary `wasi:http` component. `testing.js` stands in for the platform in
 * Node, so that unit tests run with `node --test`.
 */
export { BadRequest, FunctionError, ModelError } from './error.js';
export { Model } from './model.js';
export { Tensor } from './tensor.js';
export { answer, environment, serve } from './http.js';
