/* The function's own logic, on the host. */
#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "iris.h"
#include "numbers.h"

int main(void) {
  float features[FEATURES];
  assert(read_numbers("{\"features\":[6.3,3.4,5.6,2.4]}\n", "features", features, FEATURES) == 4 && features[3] == 2.4f);
  assert(are_lengths(features));
  features[0] = -1;
  assert(!are_lengths(features));
  const char *const wrong[] = {"", "[]", "{}", "{\"features\":[1,2,3,4,5]}", "{\"features\":[1,2,\"3\"]}", "{\"features\":[1e999]}"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
    assert(read_numbers(wrong[i], "features", features, FEATURES) == -1);
  assert(strcmp(species[most_probable((float[]){0.25f, 0.125f, 0.625f})], "virginica") == 0);
  puts("ok");
  return 0;
}
