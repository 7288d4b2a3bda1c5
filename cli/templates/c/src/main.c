/* Tells the species of an iris from four lengths: sepal length and width, petal length and width.
 *
 * A command: the request's body is on stdin, the answer goes to stdout, and exit code 0 makes it a 200 unless
 * `fnctl_status` said otherwise. Any other code makes it a 502, with what is on stderr in the function's log. */
#include "fnctl.h"
#include "iris.h"
#include "numbers.h"

int main(void) {
  fnctl_error error;
  size_t length;
  char *body = fnctl_body(64 * 1024, &length, &error);
  if (!body) fnctl_exit(&error);

  float features[FEATURES];
  if (read_numbers(body, "features", features, FEATURES) != FEATURES || !are_lengths(features)) {
    fnctl_status(400, "text/plain; charset=utf-8");
    puts("the body must be {\"features\": [...]} with 4 lengths in cm");
    return 0;
  }
  free(body);

  static const char *const inputs[] = {"features", NULL};
  static const char *const outputs[] = {"probabilities", NULL};
  fnctl_model model = {.name = "iris", .inputs = inputs, .outputs = outputs};
  float probabilities[SPECIES];
  fnctl_tensor in[] = {fnctl_f32("features", features, FEATURES, 2, (uint32_t[]){1, FEATURES})};
  fnctl_tensor out[] = {fnctl_f32("probabilities", probabilities, SPECIES, 2, (uint32_t[]){1, SPECIES})};
  if (!fnctl_load(&model, &error) || !fnctl_run(&model, in, 1, out, 1, &error)) fnctl_exit(&error);

  int best = most_probable(probabilities);
  printf("{\"species\":\"%s\",\"probability\":%.8g}\n", species[best], probabilities[best]);
  return 0;
}
