/** Reads a handwritten digit from an image of 8 by 8 pixels. */

import { BadRequest, Model, Tensor, serve } from '../../sdk/javascript/index.js';

// Rows of the image from top to bottom, 0 is paper and 1 is ink.
const PIXELS = 64;

const isInk = (pixel) => typeof pixel === 'number' && pixel >= 0 && pixel <= 1;

/** What an instance keeps. */
export class App {
  constructor() {
    this.model = Model.load('digits');
  }

  /** `{"pixels": [...]}` in, the digit and how sure the model is out. */
  async handle(request) {
    const input = await request.json().catch((problem) => {
      throw new BadRequest(`the body is not JSON: ${problem.message}`);
    });
    const pixels = input?.pixels;
    if (!Array.isArray(pixels) || pixels.length !== PIXELS || !pixels.every(isInk)) {
      throw new BadRequest(`pixels must be ${PIXELS} numbers from 0 (paper) to 1 (ink), row by row`);
    }
    const outputs = this.model.run({ pixels: Tensor.f32([1, PIXELS], pixels) });
    const probabilities = Array.from(outputs.probabilities.elements());
    const probability = Math.max(...probabilities);
    return { digit: probabilities.indexOf(probability), probability };
  }
}

export const { incomingHandler, lifecycle } = serve(App);
