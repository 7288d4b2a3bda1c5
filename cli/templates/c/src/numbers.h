/* Reads `{"key": [1, 2.5, ...]}`: what this function takes, no more of JSON. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static inline const char *skip_blanks(const char *at) { return at + strspn(at, " \t\r\n"); }

/* Behind `expected` if it is what comes next, otherwise NULL. */
static inline const char *after(const char *at, const char *expected) {
  if (!at) return NULL;
  at = skip_blanks(at);
  size_t length = strlen(expected);
  return strncmp(at, expected, length) == 0 ? at + length : NULL;
}

/* How many numbers the text has under its one key, or -1 if it looks different or has more than `capacity`. */
static inline int read_numbers(const char *text, const char *key, float *numbers, int capacity) {
  const char *at = after(after(after(after(after(after(text, "{"), "\""), key), "\""), ":"), "[");
  if (!at) return -1;
  int count = 0;
  if (after(at, "]")) at = after(at, "]");
  else
    for (;;) {
      at = skip_blanks(at);
      /* strtof also takes inf, nan and hexadecimal numbers, which JSON does not have. */
      size_t length = strspn(at, "+-.0123456789eE");
      char *end;
      float number = strtof(at, &end);
      /* A number too large for a float is infinite, and infinite minus itself is no zero. */
      if (length == 0 || end != at + length || number - number != 0 || count == capacity) return -1;
      numbers[count++] = number;
      at = skip_blanks(end);
      if (*at == ']') {
        at++;
        break;
      }
      if (*at++ != ',') return -1;
    }
  at = after(at, "}");
  return at && *skip_blanks(at) == 0 ? count : -1;
}

#endif
