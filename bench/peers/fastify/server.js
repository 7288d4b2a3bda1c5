// The peer of the `fraud` example: the same model behind fastify and onnxruntime-node. usage: server.js PORT MODEL
import Fastify from "fastify";
import * as ort from "onnxruntime-node";

const [port, model] = process.argv.slice(2);
const session = await ort.InferenceSession.create(model, { intraOpNumThreads: 1, interOpNumThreads: 1 });
const app = Fastify({ logger: false });

app.post("/", async (request) => {
  const { features } = request.body;
  const tensor = new ort.Tensor("float32", Float32Array.from(features), [1, features.length]);
  const outputs = await session.run({ features: tensor });
  const probability = outputs.fraud_probability.data[0];
  return { probability, fraud: probability >= 0.5 };
});

await app.listen({ port: Number(port), host: "127.0.0.1" });
