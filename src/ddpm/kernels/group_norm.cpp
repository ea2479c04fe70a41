// Group normalisation of channels-last images, fused with its neighbours in a residual block:
//
//     z = (x + shift - mean) / std * weight + bias        mean and std over the pixels and channels of a group
//     y = dropout(silu(z)), or z
//
// x, y: (batch, pixels, channels) in float32 or bfloat16; shift, sums over pixels: (batch, channels) in float32.
// A thread takes whole images, so that the second pass finds them in the cache. Memory is allocated before the threads
// start, because they could not raise an error.

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float read(float value) { return value; }

inline float read(bfloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline void write(float& to, float value) { to = value; }

inline void write(bfloat16& to, float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint16_t rounded = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    to.bits = value == value ? rounded : uint16_t(0x7fc0);
}

// e^x to a few units in the last place, or to a relative error of 5e-5 for bfloat16: 2^n times a polynomial in the
// remainder r, |r| <= log(2) / 2.
template <class T>
inline float exponential(float x) {
    x = x > 88.f ? 88.f : x < -87.f ? -87.f : x;
    float n = std::nearbyint(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.f / 24;
    if constexpr (sizeof(T) == 4) {
        p = 1.f / 5040;
        p = p * r + 1.f / 720;
        p = p * r + 1.f / 120;
        p = p * r + 1.f / 24;
    }
    p = p * r + 1.f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

template <class T>
inline float sigmoid(float z) {
    return 1.f / (1.f + exponential<T>(-z));
}

struct Dropout {
    uint32_t drop;  // how many of the 2^32 random integers drop an element
    float scale;    // 1 / (1 - probability)
    uint32_t low, high;

    // Hashes each element to a random integer.
    inline float factor(uint32_t element) const {
        uint32_t h = element + low;
        h = (h ^ (h >> 16)) * 0x7feb352dU;
        h = (h ^ (h >> 15)) * 0x846ca68bU;
        h = (h ^ (h >> 16)) + high;
        h = (h ^ (h >> 16)) * 0x7feb352dU;
        h = (h ^ (h >> 15)) * 0x846ca68bU;
        h ^= h >> 16;
        return h < drop ? 0.f : scale;
    }
};

// Scratch memory for each thread, more than a cache line apart.
template <class T>
struct Room {
    int64_t size;
    std::unique_ptr<T[]> data;
    Room(int64_t threads, int64_t wanted) : size(wanted + 128 / sizeof(T)), data(new T[threads * size]) {}
    T* of(int64_t thread) const { return data.get() + thread * size; }
};

struct Sizes {
    int64_t batch, pixels, channels, groups;
};

template <bool silu, bool drop, class T>
void forward(const T* x, const float* shift, const float* weight, const float* bias, T* y, float* mean, float* rstd,
             Sizes n, double eps, Dropout dropout) {
    const double pixels = double(n.pixels);
    const int64_t size = n.pixels * n.channels, width = n.channels / n.groups;
    const int64_t threads = omp_get_max_threads();
    const Room<float> work(threads, 3 * n.channels);
    const Room<double> totals(threads, 2 * n.channels);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < n.batch; b++) {
        const T* in = x + b * size;
        T* out = y + b * size;
        // Summing differences from the first pixel stays precise when the mean is far from zero.
        float *first = work.of(omp_get_thread_num()), *sum = first + n.channels, *square = sum + n.channels;
        double* sums = totals.of(omp_get_thread_num());
        for (int64_t c = 0; c < 2 * n.channels; c++) sums[c] = 0;
        for (int64_t c = 0; c < n.channels; c++) first[c] = read(in[c]);
        for (int64_t start = 0; start < n.pixels; start += 64) {
            const int64_t end = start + 64 < n.pixels ? start + 64 : n.pixels;
            for (int64_t c = 0; c < 2 * n.channels; c++) sum[c] = 0;
            for (int64_t p = start; p < end; p++) {
                const T* row = in + p * n.channels;
#pragma omp simd
                for (int64_t c = 0; c < n.channels; c++) {
                    const float d = read(row[c]) - first[c];
                    sum[c] += d;
                    square[c] += d * d;
                }
            }
            for (int64_t c = 0; c < 2 * n.channels; c++) sums[c] += sum[c];
        }
        float *scale = sum, *offset = square;
        for (int64_t g = 0; g < n.groups; g++) {
            double total = 0, squares = 0;
            for (int64_t c = g * width; c < (g + 1) * width; c++) {
                sums[c] /= pixels;
                sums[n.channels + c] -= pixels * sums[c] * sums[c];
                sums[c] += double(first[c]) + (shift ? shift[b * n.channels + c] : 0.f);
                total += sums[c];
            }
            const double mu = total / double(width);
            for (int64_t c = g * width; c < (g + 1) * width; c++)
                squares += sums[n.channels + c] + pixels * (sums[c] - mu) * (sums[c] - mu);
            const double r = 1 / std::sqrt(squares / double(n.pixels * width) + eps);
            mean[b * n.groups + g] = float(mu);
            rstd[b * n.groups + g] = float(r);
            for (int64_t c = g * width; c < (g + 1) * width; c++) {
                scale[c] = float(r * weight[c]);
                offset[c] = float(((shift ? shift[b * n.channels + c] : 0.f) - mu) * r * weight[c] + bias[c]);
            }
        }
        for (int64_t p = 0; p < n.pixels; p++) {
            const T* row = in + p * n.channels;
            T* to = out + p * n.channels;
            const uint32_t element = uint32_t(b * size + p * n.channels);
#pragma omp simd
            for (int64_t c = 0; c < n.channels; c++) {
                float z = read(row[c]) * scale[c] + offset[c];
                if (silu) z *= sigmoid<T>(z);
                if (drop) z *= dropout.factor(element + uint32_t(c));
                write(to[c], z);
            }
        }
    }
}

// d_shift, d_weight and d_bias are per image; the caller sums the last two over the batch.
template <bool silu, bool drop, class T>
void backward(const T* x, const T* dy, const float* shift, const float* weight, const float* bias, const float* mean,
              const float* rstd, T* dx, float* d_shift, float* d_weight, float* d_bias, Sizes n, Dropout dropout) {
    const int64_t size = n.pixels * n.channels, width = n.channels / n.groups;
    const int64_t threads = omp_get_max_threads();
    const Room<float> work(threads, 5 * n.channels), store(threads, size);
#pragma omp parallel num_threads(threads)
    {
        float* dz = store.of(omp_get_thread_num());
        float *scale = work.of(omp_get_thread_num()), *offset = scale + n.channels, *sum = offset + n.channels;
        float *product = sum + n.channels, *slope = product + n.channels;
#pragma omp for schedule(static)
        for (int64_t b = 0; b < n.batch; b++) {
            const T *in = x + b * size, *from = dy + b * size;
            T* out = dx + b * size;
            for (int64_t c = 0; c < n.channels; c++) {
                const float r = rstd[b * n.groups + c / width];
                const float mu = mean[b * n.groups + c / width] - (shift ? shift[b * n.channels + c] : 0.f);
                scale[c] = r;  // x_hat = x * scale + offset
                offset[c] = -mu * r;
                sum[c] = product[c] = 0;
            }
            for (int64_t p = 0; p < n.pixels; p++) {
                const T *row = in + p * n.channels, *d_row = from + p * n.channels;
                float* to = dz + p * n.channels;
                const uint32_t element = uint32_t(b * size + p * n.channels);
#pragma omp simd
                for (int64_t c = 0; c < n.channels; c++) {
                    const float x_hat = read(row[c]) * scale[c] + offset[c];
                    float d = read(d_row[c]);
                    if (drop) d *= dropout.factor(element + uint32_t(c));
                    if (silu) {
                        const float z = x_hat * weight[c] + bias[c], s = sigmoid<T>(z);
                        d *= s * (1 + z * (1 - s));
                    }
                    to[c] = d;
                    sum[c] += d;
                    product[c] += d * x_hat;
                }
            }
            for (int64_t g = 0; g < n.groups; g++) {
                double m_1 = 0, m_2 = 0;
                for (int64_t c = g * width; c < (g + 1) * width; c++) {
                    m_1 += double(weight[c]) * sum[c];
                    m_2 += double(weight[c]) * product[c];
                }
                const double count = double(n.pixels * width);
                const float r = rstd[b * n.groups + g], a = float(m_1 / count), k = float(m_2 / count);
                for (int64_t c = g * width; c < (g + 1) * width; c++) {
                    d_bias[b * n.channels + c] = sum[c];
                    d_weight[b * n.channels + c] = product[c];
                    // dx = r (weight dz - a - k x_hat)
                    slope[c] = -r * k * scale[c];
                    offset[c] = -r * (a + k * offset[c]);
                    scale[c] = r * weight[c];
                    sum[c] = 0;
                }
            }
            for (int64_t p = 0; p < n.pixels; p++) {
                const T* row = in + p * n.channels;
                const float* d_row = dz + p * n.channels;
                T* to = out + p * n.channels;
#pragma omp simd
                for (int64_t c = 0; c < n.channels; c++) {
                    const float d = d_row[c] * scale[c] + read(row[c]) * slope[c] + offset[c];
                    sum[c] += d;
                    write(to[c], d);
                }
            }
            for (int64_t c = 0; c < n.channels; c++) d_shift[b * n.channels + c] = sum[c];
        }
    }
}

Dropout dropout_of(double probability, const int64_t* seed) {
    const uint64_t bits = seed ? uint64_t(*seed) : 0;
    return {uint32_t(probability * 4294967296.0), float(1 / (1 - probability)), uint32_t(bits), uint32_t(bits >> 32)};
}

}  // namespace

extern "C" {

// Kernel arguments, in the order declared in Python.
struct GroupNorm {
    const void* x;
    const float *shift, *weight, *bias;
    void* y;
    float* moments;  // means, then reciprocal standard deviations
    const int64_t* seed;
    int64_t batch, pixels, channels, groups;
    double eps, dropout;
    bool half, silu;
};

struct GroupNormBackward {
    const void *x, *dy;
    const float *shift, *weight, *bias, *moments;
    void* dx;
    float* sums;  // per image: d_shift, d_weight, d_bias
    const int64_t* seed;
    int64_t batch, pixels, channels, groups;
    double dropout;
    bool half, silu;
};
}

namespace {

template <class T>
void forward_of(const GroupNorm& a) {
    const bool drop = a.dropout > 0;
    auto run = a.silu ? (drop ? forward<true, true, T> : forward<true, false, T>)
                      : (drop ? forward<false, true, T> : forward<false, false, T>);
    run((const T*)a.x, a.shift, a.weight, a.bias, (T*)a.y, a.moments, a.moments + a.batch * a.groups,
        {a.batch, a.pixels, a.channels, a.groups}, a.eps, dropout_of(a.dropout, a.seed));
}

template <class T>
void backward_of(const GroupNormBackward& a) {
    const bool drop = a.dropout > 0;
    const int64_t size = a.batch * a.channels;
    auto run = a.silu ? (drop ? backward<true, true, T> : backward<true, false, T>)
                      : (drop ? backward<false, true, T> : backward<false, false, T>);
    run((const T*)a.x, (const T*)a.dy, a.shift, a.weight, a.bias, a.moments, a.moments + a.batch * a.groups, (T*)a.dx,
        a.sums, a.sums + size, a.sums + 2 * size, {a.batch, a.pixels, a.channels, a.groups},
        dropout_of(a.dropout, a.seed));
}

}  // namespace

extern "C" {

// Both return 0, or 1 if their buffers cannot be allocated.

int group_norm(const GroupNorm* a) try {
    a->half ? forward_of<bfloat16>(*a) : forward_of<float>(*a);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

int group_norm_backward(const GroupNormBackward* a) try {
    a->half ? backward_of<bfloat16>(*a) : backward_of<float>(*a);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
}
