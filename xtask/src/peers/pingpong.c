/* Two MPI ranks: latency, message rate and bandwidth, as `cargo xtask peers` measures kfab.
 *
 *   pingpong lat  SIZE ITERATIONS          one way, nanoseconds
 *   pingpong rate SIZE ITERATIONS WINDOW   messages a second, from rank 0 to rank 1, a window at a time
 *
 * Rank 0 prints one line: the figure, as a plain number.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *buffer(size_t size)
{
    char *memory = NULL;
    if (posix_memalign((void **)&memory, 4096, size ? size : 1) != 0)
        MPI_Abort(MPI_COMM_WORLD, 1);
    memset(memory, 1, size ? size : 1);
    return memory;
}

static double latency_ns(int rank, int size, long iterations)
{
    char *in = buffer(size), *out = buffer(size);
    double begun = 0;
    long warm = iterations / 10 + 1;
    for (long i = -warm; i < iterations; i++) {
        if (i == 0)
            begun = MPI_Wtime();
        if (rank == 0) {
            MPI_Send(out, size, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
            MPI_Recv(in, size, MPI_BYTE, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(in, size, MPI_BYTE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(out, size, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
        }
    }
    return (MPI_Wtime() - begun) / iterations / 2 * 1e9;
}

static double messages_per_s(int rank, int size, long iterations, int window)
{
    MPI_Request *requests = calloc(window, sizeof *requests);
    char *memory = buffer((size_t)size * window);
    char ack = 0;
    double begun = 0;
    long rounds = iterations / window + 1, warm = rounds / 10 + 1;
    for (long i = -warm; i < rounds; i++) {
        if (i == 0) {
            MPI_Barrier(MPI_COMM_WORLD);
            begun = MPI_Wtime();
        }
        for (int w = 0; w < window; w++) {
            char *at = memory + (size_t)size * w;
            if (rank == 0)
                MPI_Isend(at, size, MPI_BYTE, 1, 0, MPI_COMM_WORLD, &requests[w]);
            else
                MPI_Irecv(at, size, MPI_BYTE, 0, 0, MPI_COMM_WORLD, &requests[w]);
        }
        MPI_Waitall(window, requests, MPI_STATUSES_IGNORE);
    }
    if (rank == 0)
        MPI_Recv(&ack, 1, MPI_BYTE, 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    else
        MPI_Send(&ack, 1, MPI_BYTE, 0, 1, MPI_COMM_WORLD);
    return rounds * window / (MPI_Wtime() - begun);
}

int main(int count, char **words)
{
    int rank = 0;
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (count < 4 || (strcmp(words[1], "rate") == 0 && count < 5)) {
        fprintf(stderr, "usage: pingpong lat|rate SIZE ITERATIONS [WINDOW]\n");
        MPI_Abort(MPI_COMM_WORLD, 2);
    }
    int size = atoi(words[2]);
    long iterations = atol(words[3]);
    double figure = strcmp(words[1], "lat") == 0 ? latency_ns(rank, size, iterations)
                                                 : messages_per_s(rank, size, iterations, atoi(words[4]));
    if (rank == 0)
        printf("%.3f\n", figure);
    MPI_Finalize();
    return 0;
}
