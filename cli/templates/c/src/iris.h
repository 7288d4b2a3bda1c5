/* What this function makes of the model's answer. */
#ifndef IRIS_H
#define IRIS_H

#define FEATURES 4
#define SPECIES 3

/* The model's outputs, in its order. */
static const char *const species[SPECIES] = {"setosa", "versicolor", "virginica"};

/* The position of the largest probability. */
static inline int most_probable(const float probabilities[SPECIES]) {
  int best = 0;
  for (int i = 1; i < SPECIES; i++)
    if (probabilities[i] > probabilities[best]) best = i;
  return best;
}

/* Whether a flower can measure these, in centimetres. */
static inline int are_lengths(const float features[FEATURES]) {
  for (int i = 0; i < FEATURES; i++)
    if (features[i] < 0 || features[i] > 100) return 0;
  return 1;
}

#endif
