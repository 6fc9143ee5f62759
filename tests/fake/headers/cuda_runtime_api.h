// What the C++ loader uses of CUDA, in the memory of the CPU.
#pragma once

#include <cstdlib>
#include <cstring>

enum cudaError_t { cudaSuccess = 0, cudaErrorUnknown = 999 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
using cudaStream_t = struct Stream*;

inline const char* cudaGetErrorString(cudaError_t) { return "failed"; }
inline cudaError_t cudaMalloc(void** place, size_t size) { return (*place = std::malloc(size)) ? cudaSuccess : cudaErrorUnknown; }
inline cudaError_t cudaFree(void* place) { return std::free(place), cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t*) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
    return std::memcpy(to, from, size), cudaSuccess;
}
