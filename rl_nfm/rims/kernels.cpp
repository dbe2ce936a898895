// One step of Recurrent Independent Mechanisms on the CPU, without its matrix products.
//
// `step.py` is the definition this is tested against; its names and letters are used here: n RIMs,
// B batch, s size of a RIM, G its gates, h heads, d and e sizes of a head's keys and values. Between
// the products, which `kernels.py` leaves to PyTorch, each function below goes once over what plain
// PyTorch goes over ten times. All are parallel over the batch, whose rows are independent: results
// do not depend on the number of threads.
//
// The equations of the backward stand in `step.py`, `blocks.py`, `communication.py` and `sparse.py`.
//
// Built by `rl_nfm/support/cpp.py`, called by `kernels.py`.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

// A tensor [n, T, B, width] with its steps; the width lies densely. Where a dimension is broadcast
// its step is 0.
template <typename T>
struct View {
  T* at;
  int64_t rim, step, row;

  explicit operator bool() const { return at != nullptr; }
  T* operator()(int64_t i, int64_t t, int64_t b) const { return at + i * rim + t * step + b * row; }
};

enum Gate { kNone, kNull, kAcross };

// In the order of `kernels.py`. Views that a form does not need are null.
template <typename T>
struct Layer {
  int64_t steps, rims, batch, size, heads, key, value, num_active, threads;
  int64_t lstm, gate, mask_input, show_previous, gated;
  // The inputs.
  View<T> drive, base, hidden_bias, key_query, rank_query, output_bias, dropout;
  View<const uint8_t> valid, reset;
  // What the forward leaves; states [n, T + 1, B, s] are those before each step, and the last.
  View<T> hidden, cell;
  View<uint8_t> active;
  View<T> input_gate, acts, extra, shown, projected, probs, read, update, output, product;
  // The backward's. Those of the states are of one step only; after it, of the step before.
  View<T> of_output, of_hidden, of_cell, of_update, of_read, of_projected, of_shown, of_gates,
      of_product, of_key_query;
};

// a * b + c, rounded once where the machine can. Elsewhere the compiler may merge the two steps of
// the reduction in `exponential`, whose relative error then grows to 1e-7 |x|.
inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return std::fma(a, b, c);
#else
  return a * b + c;
#endif
}

inline double exponential(double x) { return std::exp(x); }

// 2^k times the polynomial of e^r, |r| <= ln(2) / 2, within 2 units in the last place; 0 below the
// smallest normal number, infinite above 88, NaN of NaN. Written out so that loops over it are
// vectorised.
inline float exponential(float x) {
  float y = x * 1.44269504088896341f;
  y = y < 127.0f ? y : 127.0f;
  y = y > -126.0f ? y : -126.0f;
  const float whole = std::floor(y + 0.5f);
  // ln(2) in two parts: one float of it would be off by 2e-9, and its product by 87 times that.
  const float r = fused(-whole, -1.90465429995776e-9f, fused(-whole, 0.693147182464599609f, x));
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  const float inside = x == x ? sum * power : x;
  return x < -87.33f ? 0.0f : x > 88.0f ? std::numeric_limits<float>::infinity() : inside;
}

template <typename T>
inline T sigmoid(T x) {
  return 1 / (1 + exponential(-x));
}

inline double tangent(double x) { return std::tanh(x); }

// tanh within 3 units in the last place at every scale: near 0 from its series in x^2 (fitted, since
// 1 - 2 / (1 + e^2x) would lose all digits of a small x there), elsewhere from the exponential.
inline float tangent(float x) {
  const float square = x * x, size = std::fabs(x);
  float sum = -0.00570498686f;
  sum = sum * square + 0.02063908800f;
  sum = sum * square - 0.05373971537f;
  sum = sum * square + 0.13331441581f;
  sum = sum * square - 0.33333280683f;
  const float near = x + x * (square * sum);
  const float far = std::copysign(1 - 2 / (1 + exponential(2 * size)), x);
  return size < 0.625f ? near : far;
}

template <typename T>
inline T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <typename T>
inline void add_scaled(T* to, T factor, const T* from, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

template <typename T, typename F>
void for_rows(const Layer<T>& l, F f) {
#pragma omp parallel for num_threads(l.threads) if (l.batch * l.rims * l.size > 2048)
  for (int64_t b = 0; b < l.batch; ++b) f(b);
}

template <typename T>
inline bool is_active(const Layer<T>& l, int64_t i, int64_t t, int64_t b) {
  return *l.active(i, t, b) != 0;
}

template <typename T>
inline bool starts_anew(const Layer<T>& l, int64_t t, int64_t b) {
  return l.reset && t < l.steps && *l.reset(0, t, b) != 0;
}

// How many of the values come before the i-th in falling order; ties go to the lower index.
template <typename T>
inline int64_t count_ahead(const std::vector<T>& of, int64_t i) {
  int64_t ahead = 0;
  for (int64_t j = 0; j < int64_t(of.size()); ++j)
    ahead += j < i ? of[j] >= of[i] : of[j] > of[i];
  return ahead;
}

// `sparse_softmax` of sparse.py. Notes its probabilities, whose (k + 1)-th highest is at `border` (of
// equal ones the lower index comes first; -1: nothing is cut), and what the weights were divided by.
template <typename T>
struct Sparse {
  std::vector<T> probs, weights;
  int64_t border = -1;
  T total = 0;

  Sparse(const std::vector<T>& logits, int64_t k) : probs(logits), weights(logits.size()) {
    const int64_t n = logits.size();
    const T highest = *std::max_element(logits.begin(), logits.end());
    T sum = 0;
    for (T& p : probs) sum += p = exponential(p - highest);
    for (T& p : probs) p /= sum;
    weights = probs;
    if (n <= k + 1) return;
    const T epsilon = T(1e-7);
    for (int64_t i = 0; i < n; ++i)
      if (count_ahead(logits, i) == k) border = i;
    if (border < 0) return;  // NaN
    for (int64_t i = 0; i < n; ++i)
      total += weights[i] = std::max(probs[i] - (probs[border] + epsilon), T(0));
    total += epsilon;
    for (T& w : weights) w /= total;
  }

  // The gradient of logits from that of weights, in its place.
  void backward(std::vector<T>& grad) const {
    const int64_t n = probs.size();
    T mean = 0;
    if (border >= 0) {
      for (int64_t i = 0; i < n; ++i) mean += weights[i] * grad[i];
      T of_border = 0;
      for (int64_t i = 0; i < n; ++i) {
        grad[i] = weights[i] > 0 ? (grad[i] - mean) / total : T(0);
        of_border -= grad[i];
      }
      grad[border] += of_border;
      mean = 0;
    }
    for (int64_t i = 0; i < n; ++i) mean += probs[i] * grad[i];
    for (int64_t i = 0; i < n; ++i) grad[i] = probs[i] * (grad[i] - mean);
  }
};

// Which RIMs are active, how much each reads of the input, and so the gates' part from it.
template <typename T>
void weigh_input(const Layer<T>& l, int64_t t) {
  const int64_t n = l.rims, s = l.size, G = s * (l.lstm ? 4 : 3);
  for_rows(l, [&](int64_t b) {
    const bool valid = !l.valid || *l.valid(0, t, b) != 0;
    if (l.gate == kNone) {
      for (int64_t i = 0; i < n; ++i) *l.active(i, t, b) = valid;
    } else {
      std::vector<T> logits(n), ranks(n);
      for (int64_t i = 0; i < n; ++i) {
        logits[i] = ranks[i] = dot<T>(l.hidden(i, t, b), l.key_query(i, t, b), s);
        if (l.rank_query) ranks[i] += dot<T>(l.hidden(i, t, b), l.rank_query(i, t, b), s);
      }
      for (int64_t i = 0; i < n; ++i)
        *l.active(i, t, b) = valid && count_ahead(ranks, i) < l.num_active;
      if (l.gate == kNull) {
        for (int64_t i = 0; i < n; ++i) *l.input_gate(i, t, b) = sigmoid(logits[i]);
      } else {
        const Sparse<T> sparse(logits, l.num_active);
        for (int64_t i = 0; i < n; ++i) *l.input_gate(i, t, b) = sparse.weights[i];
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      const T factor = l.gate == kNone ? T(1) : *l.input_gate(i, t, b);
      const T *drive = l.drive(i, t, b), *base = l.base(i, t, b);
      T* pre = l.acts(i, t, b);
      if (l.mask_input && !is_active(l, i, t, b))
        std::fill(pre, pre + G, T(0));
      else
#pragma omp simd
        for (int64_t j = 0; j < G; ++j) pre[j] = base[j] + factor * drive[j];
    }
  });
}

// The blocks: candidate states from the gates before their nonlinearity, and what RIMs show.
// LSTM: c' = f c + i g, h' = o tanh(c'). GRU: n = tanh(a + r q), h' = (1 - z) n + z h.
template <typename T>
void run_blocks(const Layer<T>& l, int64_t t) {
  const int64_t s = l.size;
  for_rows(l, [&](int64_t b) {
    for (int64_t i = 0; i < l.rims; ++i) {
      T *acts = l.acts(i, t, b), *extra = l.extra(i, t, b), *candidate = l.shown(i, t, b);
      const T* hidden = l.hidden(i, t, b);
      const bool active = is_active(l, i, t, b);
      if (l.lstm) {
        const T* cell = l.cell(i, t, b);
        T* after = l.cell(i, t + 1, b);
#pragma omp simd
        for (int64_t j = 0; j < s; ++j) {
          const T in = sigmoid(acts[j]), forget = sigmoid(acts[s + j]);
          const T gain = tangent(acts[2 * s + j]), out = sigmoid(acts[3 * s + j]);
          const T now = forget * cell[j] + in * gain, squashed = tangent(now);
          acts[j] = in;
          acts[s + j] = forget;
          acts[2 * s + j] = gain;
          acts[3 * s + j] = out;
          extra[j] = squashed;
          candidate[j] = out * squashed;
          after[j] = now;
        }
        if (!active) std::copy(cell, cell + s, after);
        if (starts_anew(l, t + 1, b)) std::fill(after, after + s, T(0));
      } else {
        T* product = l.product(i, t, b);
        if (l.hidden_bias) add_scaled(product, T(1), (const T*)l.hidden_bias(i, t, b), 3 * s);
#pragma omp simd
        for (int64_t j = 0; j < s; ++j) {
          const T r = sigmoid(acts[j] + product[j]), z = sigmoid(acts[s + j] + product[s + j]);
          const T inner = product[2 * s + j], fresh = tangent(acts[2 * s + j] + r * inner);
          acts[j] = r;
          acts[s + j] = z;
          acts[2 * s + j] = fresh;
          extra[j] = inner;
          candidate[j] = fresh + z * (hidden[j] - fresh);
        }
      }
      if (l.show_previous && !active) std::copy(hidden, hidden + s, candidate);
    }
  });
}

// Of a row of `projected`: part 0 queries, 1 keys, 2 values.
template <typename T>
inline T* part_of(const Layer<T>& l, T* projected, int part, int64_t head) {
  return projected + part * l.heads * l.key + head * (part == 2 ? l.value : l.key);
}

// RIMs read from each other; probs is [n, T, B, h n].
template <typename T>
void communicate(const Layer<T>& l, int64_t t) {
  const int64_t n = l.rims, d = l.key, e = l.value;
  const T scale = 1 / std::sqrt(T(d));
  for_rows(l, [&](int64_t b) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t head = 0; head < l.heads; ++head) {
        const T* query = part_of(l, l.projected(i, t, b), 0, head);
        T *probs = l.probs(i, t, b) + head * n, *read = l.read(i, t, b) + head * e;
        for (int64_t j = 0; j < n; ++j)
          probs[j] = scale * dot<T>(query, part_of(l, l.projected(j, t, b), 1, head), d);
        const T highest = *std::max_element(probs, probs + n);
        T total = 0;
        for (int64_t j = 0; j < n; ++j) total += probs[j] = exponential(probs[j] - highest);
        std::fill(read, read + e, T(0));
        for (int64_t j = 0; j < n; ++j) {
          probs[j] /= total;
          add_scaled<T>(read, probs[j], part_of(l, l.projected(j, t, b), 2, head), e);
        }
      }
  });
}

// The new hidden states, from what was read times its weights, in `update`.
template <typename T>
void finish(const Layer<T>& l, int64_t t) {
  const int64_t s = l.size;
  for_rows(l, [&](int64_t b) {
    for (int64_t i = 0; i < l.rims; ++i) {
      const T *before = l.hidden(i, t, b), *candidate = l.shown(i, t, b);
      T *after = l.hidden(i, t + 1, b), *output = l.output(i, t, b);
      if (!is_active(l, i, t, b)) {
        std::copy(before, before + s, output);
      } else if (!l.heads) {
        std::copy(candidate, candidate + s, output);
      } else {
        T* linear = l.update(i, t, b);
        if (l.output_bias)
          add_scaled(linear, T(1), (const T*)l.output_bias(i, t, b), s * (1 + l.gated));
        if (l.dropout) {
          const T* factor = l.dropout(i, t, b);
#pragma omp simd
          for (int64_t j = 0; j < s; ++j) linear[j] *= factor[j];
        }
        if (l.gated) {
          T* gate = linear + s;
#pragma omp simd
          for (int64_t j = 0; j < s; ++j) {
            const T open = sigmoid(gate[j]), squashed = tangent(linear[j]);
            gate[j] = open;
            linear[j] = squashed;
            output[j] = candidate[j] + open * squashed;
          }
        } else {
#pragma omp simd
          for (int64_t j = 0; j < s; ++j) output[j] = candidate[j] + linear[j];
        }
      }
      if (starts_anew(l, t + 1, b))
        std::fill(after, after + s, T(0));
      else
        std::copy(output, output + s, after);
    }
  });
}

// Backward, to `finish`: gradients of the states after the step gathered, and that of `update`
// before its nonlinearity. `at` is where step t lies in what is kept of a few steps only.
template <typename T>
void finish_backward(const Layer<T>& l, int64_t t, int64_t at) {
  const int64_t s = l.size;
  for_rows(l, [&](int64_t b) {
    const bool cut = starts_anew(l, t + 1, b);
    for (int64_t i = 0; i < l.rims; ++i) {
      T* grad = l.of_hidden(i, t, b);
      if (cut) std::fill(grad, grad + s, T(0));
      if (cut && l.lstm) std::fill(l.of_cell(i, t, b), l.of_cell(i, t, b) + s, T(0));
      if (l.of_output) add_scaled(grad, T(1), (const T*)l.of_output(i, t, b), s);
      if (!l.heads) continue;
      T* to = l.of_update(i, at, b);
      if (!is_active(l, i, t, b)) {
        std::fill(to, to + s * (1 + l.gated), T(0));
        continue;
      }
      if (l.gated) {
        const T *squashed = l.update(i, t, b), *open = squashed + s;
#pragma omp simd
        for (int64_t j = 0; j < s; ++j) {
          to[j] = grad[j] * open[j] * (1 - squashed[j] * squashed[j]);
          to[s + j] = grad[j] * squashed[j] * open[j] * (1 - open[j]);
        }
      } else {
        std::copy(grad, grad + s, to);
      }
      if (l.dropout) {
        const T* factor = l.dropout(i, t, b);
#pragma omp simd
        for (int64_t j = 0; j < s; ++j) to[j] *= factor[j];
      }
    }
  });
}

// To `communicate`: from the gradient of `read` (r = A v) that of `projected` (q, k, v):
// dv = A^T dr, dS = A * (dr v^T - rowsum(A * dr v^T)) / sqrt(d), dq = dS k, dk = dS^T q.
template <typename T>
void communicate_backward(const Layer<T>& l, int64_t t, int64_t at) {
  const int64_t n = l.rims, d = l.key, e = l.value, width = l.heads * (2 * d + e);
  const T scale = 1 / std::sqrt(T(d));
  for_rows(l, [&](int64_t b) {
    std::vector<T> of_scores(n);
    for (int64_t i = 0; i < n; ++i) {
      T* to = l.of_projected(i, at, b);
      std::fill(to, to + width, T(0));
    }
    for (int64_t i = 0; i < n; ++i) {
      if (!is_active(l, i, t, b)) continue;  // its update was not used
      for (int64_t head = 0; head < l.heads; ++head) {
        const T *probs = l.probs(i, t, b) + head * n, *grad = l.of_read(i, t, b) + head * e;
        T mean = 0;
        for (int64_t j = 0; j < n; ++j) {
          of_scores[j] = dot<T>(grad, part_of(l, l.projected(j, t, b), 2, head), e);
          mean += probs[j] * of_scores[j];
          add_scaled(part_of(l, l.of_projected(j, at, b), 2, head), probs[j], grad, e);
        }
        const T* query = part_of(l, l.projected(i, t, b), 0, head);
        T* of_query = part_of(l, l.of_projected(i, at, b), 0, head);
        for (int64_t j = 0; j < n; ++j) {
          const T factor = scale * probs[j] * (of_scores[j] - mean);
          add_scaled<T>(of_query, factor, part_of(l, l.projected(j, t, b), 1, head), d);
          add_scaled(part_of(l, l.of_projected(j, at, b), 1, head), factor, query, d);
        }
      }
    }
  });
}

// To `run_blocks` and `weigh_input`: gradients of the gates, of the states before the step but for
// the hidden product's, and of the input's logit times the state. LSTM, with S'(y) = y (1 - y) and
// T'(y) = 1 - y^2: dc~ = dc' + dh' o T'(tanh c'), di = dc~ g S'(i), df = dc~ c S'(f),
// dg = dc~ i T'(g), do = dh' tanh(c') S'(o), dc = dc~ f. GRU: dn = (1 - z) dh' T'(n),
// dr = dn q S'(r), dz = dh' (h - n) S'(z). Then dgate = <da, drive>, dlogit = gate (1 - gate) dgate.
template <typename T>
void blocks_backward(const Layer<T>& l, int64_t t, int64_t at) {
  const int64_t n = l.rims, s = l.size, G = s * (l.lstm ? 4 : 3);
  for_rows(l, [&](int64_t b) {
    std::vector<T> of_gate(n);
    for (int64_t i = 0; i < n; ++i) {
      T *grad = l.of_hidden(i, t, b), *gates = l.of_gates(i, at, b);
      if (!is_active(l, i, t, b)) {  // all goes to the state as it was
        std::fill(gates, gates + G, T(0));
        if (!l.lstm) std::fill(l.of_product(i, at, b), l.of_product(i, at, b) + G, T(0));
        of_gate[i] = 0;
        continue;
      }
      if (l.heads) add_scaled(grad, T(1), (const T*)l.of_shown(i, t, b), s);
      const T *acts = l.acts(i, t, b), *extra = l.extra(i, t, b);
      if (l.lstm) {
        const T* cell = l.cell(i, t, b);
        T* of_cell = l.of_cell(i, t, b);
#pragma omp simd
        for (int64_t j = 0; j < s; ++j) {
          const T in = acts[j], forget = acts[s + j], gain = acts[2 * s + j], out = acts[3 * s + j];
          const T total = of_cell[j] + grad[j] * out * (1 - extra[j] * extra[j]);
          gates[j] = total * gain * in * (1 - in);
          gates[s + j] = total * cell[j] * forget * (1 - forget);
          gates[2 * s + j] = total * in * (1 - gain * gain);
          gates[3 * s + j] = grad[j] * extra[j] * out * (1 - out);
          of_cell[j] = total * forget;
          grad[j] = 0;
        }
      } else {
        const T* hidden = l.hidden(i, t, b);
        T* product = l.of_product(i, at, b);
#pragma omp simd
        for (int64_t j = 0; j < s; ++j) {
          const T r = acts[j], z = acts[s + j], fresh = acts[2 * s + j];
          const T mixed = grad[j] * z, of_fresh = (grad[j] - mixed) * (1 - fresh * fresh);
          product[j] = gates[j] = of_fresh * extra[j] * r * (1 - r);
          product[s + j] = gates[s + j] = grad[j] * (hidden[j] - fresh) * z * (1 - z);
          gates[2 * s + j] = of_fresh;
          product[2 * s + j] = of_fresh * r;
          grad[j] = mixed;
        }
      }
      of_gate[i] = l.gate == kNone ? T(0) : dot<T>(gates, l.drive(i, t, b), G);
    }
    if (l.gate == kNone) return;
    std::vector<T>& of_logits = of_gate;  // from here on
    if (l.gate == kNull) {
      for (int64_t i = 0; i < n; ++i) {
        const T gate = *l.input_gate(i, t, b);
        of_logits[i] *= gate * (1 - gate);
      }
    } else {
      std::vector<T> logits(n);
      for (int64_t i = 0; i < n; ++i)
        logits[i] = dot<T>(l.hidden(i, t, b), l.key_query(i, t, b), s);
      Sparse<T>(logits, l.num_active).backward(of_logits);
    }
    for (int64_t i = 0; i < n; ++i) {
      const T of_logit = of_logits[i];
      const T *hidden = l.hidden(i, t, b), *key_query = l.key_query(i, t, b);
      T *grad = l.of_hidden(i, t, b), *of_key_query = l.of_key_query(i, t, b);
#pragma omp simd
      for (int64_t j = 0; j < s; ++j) {
        grad[j] += of_logit * key_query[j];
        of_key_query[j] = of_logit * hidden[j];
      }
    }
  });
}

}  // namespace

#define FORWARD(NAME, T, STEP) \
  extern "C" void STEP##_##NAME(const Layer<T>* l, int64_t t) { STEP(*l, t); }
#define BACKWARD(NAME, T, STEP) \
  extern "C" void STEP##_##NAME(const Layer<T>* l, int64_t t, int64_t at) { STEP(*l, t, at); }
#define EXPORT(NAME, T)                  \
  FORWARD(NAME, T, weigh_input)          \
  FORWARD(NAME, T, run_blocks)           \
  FORWARD(NAME, T, communicate)          \
  FORWARD(NAME, T, finish)               \
  BACKWARD(NAME, T, finish_backward)     \
  BACKWARD(NAME, T, communicate_backward) \
  BACKWARD(NAME, T, blocks_backward)

EXPORT(float32, float)
EXPORT(float64, double)
