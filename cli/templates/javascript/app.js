/** Tells the species of an iris from four lengths. */

import { BadRequest, Model, Tensor, serve } from './sdk/index.js';

// The model's outputs and inputs, in its order.
const SPECIES = ['setosa', 'versicolor', 'virginica'];
const FEATURES = ['sepal length', 'sepal width', 'petal length', 'petal width'];

// Whether a flower can measure this, in centimetres.
const isLength = (value) => typeof value === 'number' && value >= 0 && value <= 100;

/** What an instance keeps. Made once per instance, before its first request. */
export class App {
  constructor() {
    this.model = Model.load('iris');
  }

  /** Once per request: a web Request in. What is returned becomes JSON; a web Response goes out as it is. */
  async handle(request) {
    const input = await request.json().catch((problem) => {
      throw new BadRequest(`the body is not JSON: ${problem.message}`);
    });
    const features = input?.features;
    if (!Array.isArray(features) || features.length !== FEATURES.length || !features.every(isLength)) {
      throw new BadRequest(`features must be ${FEATURES.length} lengths in cm: ${FEATURES.join(', ')}`);
    }
    const outputs = this.model.run({ features: Tensor.f32([1, FEATURES.length], features) });
    const probabilities = outputs.probabilities.elements();
    const probability = Math.max(...probabilities);
    return { species: SPECIES[probabilities.indexOf(probability)], probability };
  }
}

// What the platform calls.
export const { incomingHandler, lifecycle } = serve(App);
