/* What numbers.h reads, on the host. */
#include <assert.h>
#include <stdio.h>

#include "numbers.h"

static float numbers[3];

static int read(const char *text) { return read_numbers(text, "features", numbers, 3); }

int main(void) {
  assert(read("{\"features\":[1,-2.5,3e2]}") == 3 && numbers[1] == -2.5f && numbers[2] == 300);
  assert(read(" { \"features\" : [ 1 , 2 ] } \n") == 2);
  assert(read("{\"features\":[]}") == 0);
  const char *const wrong[] = {"", "{", "[1]", "{\"other\":[1]}", "{\"features\":[1,]}", "{\"features\":[,1]}", "{\"features\":[1 2]}",
                               "{\"features\":[1}", "{\"features\":[1]", "{\"features\":[1]}x", "{\"features\":[nan]}", "{\"features\":[1e99]}",
                               "{\"features\":[0x1]}", "{\"features\":[1,2,3,4]}", "{\"features\":[--1]}", "{\"features\":\"1\"}"};
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    if (read(wrong[i]) != -1) printf("taken: %s\n", wrong[i]);
    assert(read(wrong[i]) == -1);
  }
  puts("ok");
  return 0;
}
