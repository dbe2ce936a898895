// NFM attention with masked top-k on the CPU, without gathering keys and values into slots.
//
// A position p of the reader has `length` slots in each written layer: table[p * length + l] is the
// row of the layer that slot l stands for, or -1 for padding. Rows hold all heads side by side and
// lie `ld` apart. Of each position and head the forward notes the k rows it attends to (counted
// through all layers; -1 for the null slot and for fewer than k) and their weights; the backward
// touches no others. Half precision comes here as float. The forward is parallel over
// positions, the backward over the batch, so that no two threads add to one row: results do not
// depend on timing.
//
// Of one position and head, with g the gradient of what it read and dX that of X:
//
//   forward                                        backward
//   s_l = scale q . k_l, the null slot's 0         dw_j = g . v_j
//   j over the k highest s                         ds_j = w_j (dw_j - sum_i w_i dw_i)
//   w_j = exp(s_j) / sum_i exp(s_i)                dq   = scale sum_j ds_j k_j
//   read = sum_j w_j v_j, the null slot's v = 0    dk_j += scale ds_j q,  dv_j += w_j g
//
// Built by `rl_nfm/support/cpp.py`, called by `kernel_call.py`; `attention.py` is the definition it is tested against.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

template <typename T>
struct Layer {
  const T* keys;
  int64_t keys_ld;
  const T* values;
  int64_t values_ld;
  T* grad_keys;  // [B, count, H * K] and [B, count, H * V], added to; null in the forward
  T* grad_values;
  int64_t count;  // rows of one sample
  const int32_t* table;
  int64_t length;
};

// Head sizes and k come as int64_t, or as a Fixed<n> that the compiler unrolls.
template <int64_t n>
using Fixed = std::integral_constant<int64_t, n>;

// Double precision is for checks: it takes the general path, and the compiler less time.
template <typename T, typename F>
void with_sizes(int64_t key, int64_t value, int64_t k, F f) {
  const auto with_top_k = [&](auto K, auto V) {
    if (k == 4)
      f(K, V, Fixed<4>{});
    else if (k == 5)
      f(K, V, Fixed<5>{});
    else
      f(K, V, k);
  };
  if constexpr (!std::is_same_v<T, double>) {
    if (key == 32 && value == 32) return with_top_k(Fixed<32>{}, Fixed<32>{});
    if (key == 16 && value == 16) return with_top_k(Fixed<16>{}, Fixed<16>{});
    if (key == 8 && value == 8) return with_top_k(Fixed<8>{}, Fixed<8>{});
  }
  f(key, value, k);
}

template <typename T, typename Size>
inline T dot(const T* a, const T* b, Size n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <typename T, typename Size>
inline void add_scaled(T* to, T factor, const T* from, Size n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

template <typename T>
inline void scale_row(const T* from, T factor, T* to, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = factor * from[i];
}

// Heads are ranked so many at a time, each in a lane of a vector.
constexpr int64_t kLanes = 4;

// Of `kLanes` heads the k highest of `count` scores, `stride` apart, in falling order, and which they
// are; of equal ones the first. Fewer leave minus infinity and -1. No branches: which slots are high
// is as good as random. `best` and `best_slots` are [k, kLanes].
template <typename A, typename TopK>
inline void highest(const A* scores, int64_t stride, int64_t count, TopK k, A* best,
                    int32_t* best_slots) {
  std::fill(best, best + k * kLanes, -std::numeric_limits<A>::infinity());
  std::fill(best_slots, best_slots + k * kLanes, -1);
  for (int32_t i = 0; i < count; ++i) {
    A score[kLanes];
    int32_t slot[kLanes];
    int32_t higher[kLanes];  // from the first lower one on, all move down, equal ones too
    for (int64_t h = 0; h < kLanes; ++h) {
      score[h] = scores[i * stride + h];
      slot[h] = i;
      higher[h] = 0;
    }
    for (int64_t j = 0; j < k; ++j) {
#pragma omp simd
      for (int64_t h = 0; h < kLanes; ++h) {
        A& s = best[j * kLanes + h];
        int32_t& r = best_slots[j * kLanes + h];
        higher[h] |= score[h] > s;
        const A other_score = higher[h] ? s : score[h];
        const int32_t other_slot = higher[h] ? r : slot[h];
        s = higher[h] ? score[h] : s;
        r = higher[h] ? slot[h] : r;
        score[h] = other_score;
        slot[h] = other_slot;
      }
    }
  }
}

// Room for k * kLanes numbers; on the stack where k is fixed, so that they can stay in registers.
template <typename A, typename TopK>
struct Room {
  std::vector<A> all;
  explicit Room(TopK k) : all(k * kLanes) {}
  A* data() { return all.data(); }
};
template <typename A, int64_t k>
struct Room<A, Fixed<k>> {
  A all[k * kLanes];
  explicit Room(Fixed<k>) {}
  A* data() { return all; }
};

struct Sizes {
  int64_t layers, batch, positions, heads, key, value, top_k;
};

// e^x for x <= 0 in a loop that the compiler makes vectors of: 2^n times a polynomial on [-ln 2 / 2,
// ln 2 / 2] (as in Cephes' expf), within 2 units in the last place; 0 below -87.
inline float exp_negative(float x) {
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(x < -87.0f ? 0.0f : n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return x < -87.0f ? 0.0f : y * power;
}
inline double exp_negative(double x) { return std::exp(x); }

// query [B, P, H * K], ld apart; read [B, P, H * V]; weights and rows [B, P, H, k].
template <typename T, typename KeySize, typename ValueSize, typename TopK>
void forward(const T* query, int64_t ld, const Layer<T>* layers, const Sizes& n, KeySize K,
             ValueSize V, TopK k, bool null_slot, double scale, T* read, T* weights,
             int32_t* rows) {
  const int64_t H = n.heads, P = n.positions, lanes = (H + kLanes - 1) / kLanes * kLanes;
  int64_t slots = 1;
  for (int64_t e = 0; e < n.layers; ++e) slots += layers[e].length;
#pragma omp parallel
  {
    const std::vector<T> zeros(H * V);
    std::vector<T> q(H * K), sum(V), scores(slots * lanes), nan(lanes);
    std::vector<int32_t> slot_rows(slots + 1);
    std::vector<const T*> slot_values(slots + 1);
    Room<T, TopK> best(k);
    Room<int32_t, TopK> best_slots(k);
    // What is chosen where there are fewer than k: slot -1, as the null slot.
    slot_rows[0] = -1;
    slot_values[0] = zeros.data();
    int32_t* const slot_row = slot_rows.data() + 1;
    const T** const slot_value = slot_values.data() + 1;
#pragma omp for
    for (int64_t at = 0; at < n.batch * P; ++at) {
      const int64_t b = at / P, p = at % P;
      scale_row(query + at * ld, static_cast<T>(scale), q.data(), H * K);
      std::fill(nan.begin(), nan.end(), T(0));
      int64_t count = 0;
      int32_t first = 0;
      for (int64_t e = 0; e < n.layers; first += layers[e].count, ++e) {
        const Layer<T>& layer = layers[e];
        for (int64_t l = 0; l < layer.length; ++l) {
          const int32_t row = layer.table[p * layer.length + l];
          if (row < 0) continue;
          const int64_t at_row = b * layer.count + row;
          const T* key = layer.keys + at_row * layer.keys_ld;
          T* score = scores.data() + count * lanes;
          for (int64_t h = 0; h < H; ++h) score[h] = dot(q.data() + h * K, key + h * K, K);
          slot_value[count] = layer.values + at_row * layer.values_ld;
          slot_row[count++] = first + row;
        }
      }
      for (int64_t i = 0; i < count; ++i)
        for (int64_t h = 0; h < lanes; ++h) {
          const T score = scores[i * lanes + h];
          nan[h] = score == score ? nan[h] : score;
        }
      if (null_slot) {
        std::fill_n(scores.begin() + count * lanes, lanes, T(0));
        slot_value[count] = zeros.data();
        slot_row[count++] = -1;
      }
      for (int64_t first_head = 0; first_head < H; first_head += kLanes) {
        T* const s = best.data();
        highest(scores.data() + first_head, lanes, count, k, s, best_slots.data());
        T total[kLanes], highest_score[kLanes];
        for (int64_t h = 0; h < kLanes; ++h) {
          total[h] = nan[first_head + h];  // 0, or NaN where any score is: then all weights are
          highest_score[h] = s[h];
        }
        for (int64_t j = 0; j < k; ++j) {
#pragma omp simd
          for (int64_t h = 0; h < kLanes; ++h) {
            const T w = exp_negative(s[j * kLanes + h] - highest_score[h]);
            s[j * kLanes + h] = w;
            total[h] += w;
          }
        }
        for (int64_t lane = 0; lane < std::min(kLanes, H - first_head); ++lane) {
          const int64_t h = first_head + lane;
          T* w = weights + (at * H + h) * k;
          int32_t* r = rows + (at * H + h) * k;
          std::fill(sum.begin(), sum.end(), nan[h]);
          for (int64_t j = 0; j < k; ++j) {
            const int32_t slot = best_slots.data()[j * kLanes + lane];
            r[j] = slot_row[slot];
            w[j] = s[j * kLanes + lane] / total[lane];
            add_scaled(sum.data(), w[j], slot_value[slot] + h * V, V);
          }
          std::copy_n(sum.begin(), int64_t(V), read + (at * H + h) * V);
        }
      }
    }
  }
}

// Rows of the memory counted through all layers: whose they are, and which there.
class RowOwners {
 public:
  template <typename T>
  RowOwners(const Layer<T>* layers, int64_t count) {
    for (int64_t e = 0; e < count; ++e) {
      firsts_.push_back(static_cast<int32_t>(layers_.size()));
      layers_.insert(layers_.end(), layers[e].count, static_cast<int32_t>(e));
    }
  }
  int32_t layer(int32_t row) const { return layers_[row]; }
  int32_t row(int32_t row) const { return row - firsts_[layers_[row]]; }

 private:
  std::vector<int32_t> layers_, firsts_;
};

template <typename T, typename KeySize, typename ValueSize, typename TopK>
void backward(const T* grad, int64_t grad_ld, const T* query, int64_t ld, const Layer<T>* layers,
              const Sizes& n, KeySize K, ValueSize V, TopK k, double scale, const T* weights,
              const int32_t* rows, T* grad_query) {
  const int64_t H = n.heads, P = n.positions;
  const RowOwners owners(layers, n.layers);
#pragma omp parallel
  {
    // The null slot is a row of zeros, whose gradient no one reads: cheaper than to ask for it.
    const std::vector<T> zeros(H * std::max<int64_t>(K, V));
    std::vector<T> nobodys(H * std::max<int64_t>(K, V));
    std::vector<T> q(H * K), dw(k);
    std::vector<const T*> key(k), value(k);
    std::vector<T*> grad_key(k), grad_value(k);
#pragma omp for
    for (int64_t b = 0; b < n.batch; ++b) {
      for (int64_t p = 0; p < P; ++p) {
        const int64_t at = b * P + p;
        scale_row(query + at * ld, static_cast<T>(scale), q.data(), H * K);
        const T* const g = grad + at * grad_ld;
        T* const dq = grad_query + at * H * K;
        std::fill_n(dq, H * K, T(0));
        for (int64_t h = 0; h < H; ++h) {
          const T* w = weights + (at * H + h) * k;
          const int32_t* r = rows + (at * H + h) * k;
          T mean = 0;
          for (int64_t j = 0; j < k; ++j) {
            if (r[j] < 0) {
              key[j] = value[j] = zeros.data();
              grad_key[j] = grad_value[j] = nobodys.data();
            } else {
              const int32_t e = owners.layer(r[j]), row = owners.row(r[j]);
              const int64_t at_row = b * layers[e].count + row;
              key[j] = layers[e].keys + at_row * layers[e].keys_ld;
              value[j] = layers[e].values + at_row * layers[e].values_ld;
              grad_key[j] = layers[e].grad_keys + at_row * H * K;
              grad_value[j] = layers[e].grad_values + at_row * H * V;
            }
            dw[j] = dot(g + h * V, value[j] + h * V, V);
            mean += w[j] * dw[j];
          }
          for (int64_t j = 0; j < k; ++j) {
            const T ds = w[j] * (dw[j] - mean);
            add_scaled(dq + h * K, static_cast<T>(ds * scale), key[j] + h * K, K);
            add_scaled(grad_key[j] + h * K, ds, q.data() + h * K, K);
            add_scaled(grad_value[j] + h * V, w[j], g + h * V, V);
          }
        }
      }
    }
  }
}

}  // namespace

#define EXPORT(NAME, T)                                                                            \
  extern "C" void forward_##NAME(const T* query, int64_t ld, const Layer<T>* layers,               \
                                 const Sizes* n, bool null_slot, double scale, T* read,            \
                                 T* weights, int32_t* rows) {                                      \
    with_sizes<T>(n->key, n->value, n->top_k, [&](auto K, auto V, auto k) {                        \
      forward(query, ld, layers, *n, K, V, k, null_slot, scale, read, weights, rows);              \
    });                                                                                            \
  }                                                                                                \
  extern "C" void backward_##NAME(const T* grad, int64_t grad_ld, const T* query, int64_t ld,      \
                                  const Layer<T>* layers, const Sizes* n, double scale,            \
                                  const T* weights, const int32_t* rows, T* grad_query) {          \
    with_sizes<T>(n->key, n->value, n->top_k, [&](auto K, auto V, auto k) {                        \
      backward(grad, grad_ld, query, ld, layers, *n, K, V, k, scale, weights, rows, grad_query);   \
    });                                                                                            \
  }

EXPORT(float32, float)
EXPORT(float64, double)
