/* Scores a card payment: 16 numbers in, the probability of fraud out. The C twin of examples/fraud. */
#include "fnctl.h"
#include "numbers.h"

/* The model's inputs, in its order, are listed in this example's README. */
#define FEATURES 16

int main(void) {
  fnctl_error error;
  size_t length;
  char *body = fnctl_body(64 * 1024, &length, &error);
  if (!body) fnctl_exit(&error);

  float features[FEATURES];
  if (read_numbers(body, "features", features, FEATURES) != FEATURES) {
    fnctl_status(400, "text/plain; charset=utf-8");
    puts("the body must be {\"features\": [...]} with 16 numbers");
    return 0;
  }
  free(body);

  static const char *const inputs[] = {"features", NULL};
  static const char *const outputs[] = {"fraud_probability", NULL};
  fnctl_model model = {.name = "fraud", .inputs = inputs, .outputs = outputs};
  float probability = 0;
  fnctl_tensor in[] = {fnctl_f32("features", features, FEATURES, 2, (uint32_t[]){1, FEATURES})};
  fnctl_tensor out[] = {fnctl_f32("fraud_probability", &probability, 1, 2, (uint32_t[]){1, 1})};
  if (!fnctl_load(&model, &error) || !fnctl_run(&model, in, 1, out, 1, &error)) fnctl_exit(&error);

  const char *threshold = getenv("THRESHOLD");
  printf("{\"probability\":%.7g,\"fraud\":%s}\n", probability, probability >= (threshold ? atof(threshold) : 0.5) ? "true" : "false");
  return 0;
}
