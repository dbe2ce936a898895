// Scores and sums of NFM attention on the CPU, without gathering keys and values into slots.
//
// A position p of the reader has L slots in each memory entry; table[p * L + l] is the entry's row
// that slot l stands for, or -1 for padding. Rows hold all heads side by side and are `ld` apart.
// scores and weights are [B, P, H, S], S the slots of all entries in turn and the null slot, if
// any, last. Sums run in float (double for double inputs). Forward is parallel over positions,
// backward over the batch, so that no two threads add to one row: results do not depend on timing.
//
// Built by `kernels.py`; `attention.py` holds the plain definitions these are tested against.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

struct bfloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

inline void narrow(float x, bfloat16& to) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to.bits = nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <typename T>
using Sum = decltype(widen(T{}));

template <typename T>
struct Entry {
  const T* rows;
  int64_t ld;
  int64_t count;  // rows of one sample
  const int32_t* table;
  int64_t length;
};

// Head sizes come as int64_t, or as a Fixed<n> that the compiler unrolls.
template <int64_t n>
using Fixed = std::integral_constant<int64_t, n>;

template <typename F>
void with_size(int64_t size, F f) {
  if (size == 32)
    f(Fixed<32>{});
  else if (size == 16)
    f(Fixed<16>{});
  else
    f(size);
}

template <typename T, typename Size>
inline Sum<T> dot(const Sum<T>* a, const T* b, Size n) {
  Sum<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * widen(b[i]);
  return sum;
}

template <typename A, typename T, typename Size>
inline void add_scaled(A* to, A factor, const T* from, Size n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += factor * widen(from[i]);
}

template <typename T, typename A>
inline void widen_row(const T* from, A factor, A* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = factor * widen(from[i]);
}

// Where gradients are summed, from 0: in their place, or in a buffer that `finish` rounds from.
template <typename T>
class Totals {
 public:
  Sum<T>* start(T* to, int64_t n) {
    to_ = to;
    if constexpr (std::is_same_v<T, Sum<T>>) {
      sums_ = to;
    } else {
      buffer_.resize(n);
      sums_ = buffer_.data();
    }
    std::fill_n(sums_, n, Sum<T>(0));
    return sums_;
  }
  void finish(int64_t n) {
    if constexpr (!std::is_same_v<T, Sum<T>>)
      for (int64_t i = 0; i < n; ++i) narrow(sums_[i], to_[i]);
  }

 private:
  T* to_;
  Sum<T>* sums_;
  std::vector<Sum<T>> buffer_;
};

template <typename T>
int64_t total_slots(const Entry<T>* entries, int64_t count, bool null_slot) {
  int64_t slots = null_slot;
  for (int64_t e = 0; e < count; ++e) slots += entries[e].length;
  return slots;
}

// scores[b, p, h, s] = scale * query[b, p, h] . key of slot s
template <typename T, typename Size>
void scores_forward(const T* query, int64_t ld, const Entry<T>* entries, int64_t count, int64_t B,
                    int64_t P, int64_t H, Size K, bool null_slot, double scale,
                    Sum<T>* scores) {
  const int64_t S = total_slots(entries, count, null_slot);
#pragma omp parallel
  {
    std::vector<Sum<T>> q(H * K);
#pragma omp for
    for (int64_t at = 0; at < B * P; ++at) {
      const int64_t b = at / P, p = at % P;
      Sum<T>* out = scores + at * H * S;
      widen_row(query + at * ld, static_cast<Sum<T>>(scale), q.data(), H * K);
      for (int64_t e = 0; e < count; ++e) {
        const Entry<T>& entry = entries[e];
        for (int64_t l = 0; l < entry.length; ++l, ++out) {
          const int32_t row = entry.table[p * entry.length + l];
          const T* key = entry.rows + (b * entry.count + row) * entry.ld;
          for (int64_t h = 0; h < H; ++h)
            out[h * S] = row < 0 ? -std::numeric_limits<Sum<T>>::infinity()
                                 : dot(q.data() + h * K, key + h * K, K);
        }
      }
      if (null_slot)
        for (int64_t h = 0; h < H; ++h) out[h * S] = 0;
    }
  }
}

template <typename T, typename Size>
void scores_backward(const Sum<T>* grad, const T* query, int64_t ld, const Entry<T>* entries,
                     int64_t count, int64_t B, int64_t P, int64_t H, Size K, bool null_slot,
                     double scale, T* grad_query, T* const* grad_keys) {
  const int64_t S = total_slots(entries, count, null_slot), C = H * K;
#pragma omp parallel
  {
    std::vector<Sum<T>> q(P * C);
    Totals<T> query_totals, key_totals;
#pragma omp for
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t p = 0; p < P; ++p)
        widen_row(query + (b * P + p) * ld, static_cast<Sum<T>>(scale), q.data() + p * C, C);
      Sum<T>* dq = query_totals.start(grad_query + b * P * C, P * C);
      int64_t first = 0;
      for (int64_t e = 0; e < count; first += entries[e].length, ++e) {
        const Entry<T>& entry = entries[e];
        Sum<T>* dk = key_totals.start(grad_keys[e] + b * entry.count * C, entry.count * C);
        for (int64_t p = 0; p < P; ++p)
          for (int64_t l = 0; l < entry.length; ++l) {
            const int32_t row = entry.table[p * entry.length + l];
            if (row < 0) continue;
            const T* key = entry.rows + (b * entry.count + row) * entry.ld;
            const Sum<T>* g = grad + (b * P + p) * H * S + first + l;
            for (int64_t h = 0; h < H; ++h) {
              const Sum<T> ds = g[h * S];
              if (ds == 0) continue;  // every slot beyond the top k
              add_scaled(dq + p * C + h * K, static_cast<Sum<T>>(ds * scale), key + h * K, K);
              add_scaled(dk + row * C + h * K, ds, q.data() + p * C + h * K, K);
            }
          }
        key_totals.finish(entry.count * C);
      }
      query_totals.finish(P * C);
    }
  }
}

// read[b, p, h] = sum over s of weights[b, p, h, s] * value of slot s
template <typename T, typename Size>
void mix_forward(const Sum<T>* weights, const Entry<T>* entries, int64_t count, int64_t B,
                 int64_t P, int64_t H, Size V, bool null_slot, T* read) {
  const int64_t S = total_slots(entries, count, null_slot), C = H * V;
#pragma omp parallel
  {
    Totals<T> totals;
#pragma omp for
    for (int64_t at = 0; at < B * P; ++at) {
      const int64_t b = at / P, p = at % P;
      const Sum<T>* w = weights + at * H * S;
      Sum<T>* sum = totals.start(read + at * C, C);
      for (int64_t e = 0; e < count; ++e) {
        const Entry<T>& entry = entries[e];
        for (int64_t l = 0; l < entry.length; ++l, ++w) {
          const int32_t row = entry.table[p * entry.length + l];
          if (row < 0) continue;
          const T* value = entry.rows + (b * entry.count + row) * entry.ld;
          for (int64_t h = 0; h < H; ++h)
            if (w[h * S] != 0) add_scaled(sum + h * V, w[h * S], value + h * V, V);
        }
      }
      totals.finish(C);
    }
  }
}

// The gradient of a weight of 0 is left at 0: no sparsifier passes it on.
template <typename T, typename Size>
void mix_backward(const T* grad, int64_t ld, const Sum<T>* weights, const Entry<T>* entries,
                  int64_t count, int64_t B, int64_t P, int64_t H, Size V, bool null_slot,
                  Sum<T>* grad_weights, T* const* grad_values) {
  const int64_t S = total_slots(entries, count, null_slot), C = H * V;
#pragma omp parallel
  {
    std::vector<Sum<T>> g(P * C);
    Totals<T> totals;
#pragma omp for
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t p = 0; p < P; ++p)
        widen_row(grad + (b * P + p) * ld, Sum<T>(1), g.data() + p * C, C);
      std::fill_n(grad_weights + b * P * H * S, P * H * S, Sum<T>(0));
      int64_t first = 0;
      for (int64_t e = 0; e < count; first += entries[e].length, ++e) {
        const Entry<T>& entry = entries[e];
        Sum<T>* dv = totals.start(grad_values[e] + b * entry.count * C, entry.count * C);
        for (int64_t p = 0; p < P; ++p)
          for (int64_t l = 0; l < entry.length; ++l) {
            const int32_t row = entry.table[p * entry.length + l];
            if (row < 0) continue;
            const T* value = entry.rows + (b * entry.count + row) * entry.ld;
            const int64_t at = (b * P + p) * H * S + first + l;
            for (int64_t h = 0; h < H; ++h) {
              const Sum<T> w = weights[at + h * S];
              if (w == 0) continue;
              const Sum<T>* gh = g.data() + p * C + h * V;
              grad_weights[at + h * S] = dot(gh, value + h * V, V);
              add_scaled(dv + row * C + h * V, w, gh, V);
            }
          }
        totals.finish(entry.count * C);
      }
    }
  }
}

// Softmax over the k highest of each row; of equal ones the first are taken.
template <typename A>
void top_k_forward(const A* scores, int64_t rows, int64_t S, int64_t k, A* weights) {
  const A lowest = -std::numeric_limits<A>::infinity();
#pragma omp parallel
  {
    std::vector<A> best(k);  // the highest so far, in falling order
    std::vector<int64_t> index(k);
#pragma omp for
    for (int64_t r = 0; r < rows; ++r) {
      const A* s = scores + r * S;
      int64_t found = 0;
      for (int64_t i = 0; i < S; ++i) {
        if (!(s[i] > (found < k ? lowest : best[k - 1]))) continue;
        int64_t at = found < k ? found++ : k - 1;
        for (; at > 0 && s[i] > best[at - 1]; --at) {
          best[at] = best[at - 1];
          index[at] = index[at - 1];
        }
        best[at] = s[i];
        index[at] = i;
      }
      A* w = weights + r * S;
      std::fill_n(w, S, A(0));
      A sum = 0;
      for (int64_t i = 0; i < found; ++i) sum += w[index[i]] = std::exp(best[i] - best[0]);
      for (int64_t i = 0; i < found; ++i) w[index[i]] /= sum;
    }
  }
}

}  // namespace

#define EXPORT(NAME, T)                                                                            \
  extern "C" void scores_forward_##NAME(const T* query, int64_t ld, const Entry<T>* entries,       \
                                        int64_t count, int64_t B, int64_t P, int64_t H, int64_t K, \
                                        bool null_slot, double scale, Sum<T>* scores) {            \
    with_size(K, [&](auto K) {                                                                     \
      scores_forward(query, ld, entries, count, B, P, H, K, null_slot, scale, scores);             \
    });                                                                                            \
  }                                                                                                \
  extern "C" void scores_backward_##NAME(                                                          \
      const Sum<T>* grad, const T* query, int64_t ld, const Entry<T>* entries, int64_t count,      \
      int64_t B, int64_t P, int64_t H, int64_t K, bool null_slot, double scale, T* grad_query,     \
      T* const* grad_keys) {                                                                       \
    with_size(K, [&](auto K) {                                                                     \
      scores_backward(grad, query, ld, entries, count, B, P, H, K, null_slot, scale, grad_query,   \
                      grad_keys);                                                                  \
    });                                                                                            \
  }                                                                                                \
  extern "C" void mix_forward_##NAME(const Sum<T>* weights, const Entry<T>* entries,               \
                                     int64_t count, int64_t B, int64_t P, int64_t H, int64_t V,    \
                                     bool null_slot, T* read) {                                    \
    with_size(V, [&](auto V) {                                                                     \
      mix_forward(weights, entries, count, B, P, H, V, null_slot, read);                           \
    });                                                                                            \
  }                                                                                                \
  extern "C" void mix_backward_##NAME(                                                             \
      const T* grad, int64_t ld, const Sum<T>* weights, const Entry<T>* entries, int64_t count,    \
      int64_t B, int64_t P, int64_t H, int64_t V, bool null_slot, Sum<T>* grad_weights,            \
      T* const* grad_values) {                                                                     \
    with_size(V, [&](auto V) {                                                                     \
      mix_backward(grad, ld, weights, entries, count, B, P, H, V, null_slot, grad_weights,         \
                   grad_values);                                                                   \
    });                                                                                            \
  }

EXPORT(float32, float)
EXPORT(float64, double)
EXPORT(bfloat16, bfloat16)

extern "C" void top_k_forward_float32(const float* scores, int64_t rows, int64_t S, int64_t k,
                                      float* weights) {
  top_k_forward(scores, rows, S, k, weights);
}
extern "C" void top_k_forward_float64(const double* scores, int64_t rows, int64_t S, int64_t k,
                                      double* weights) {
  top_k_forward(scores, rows, S, k, weights);
}
