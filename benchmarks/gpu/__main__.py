"""python -m benchmarks.gpu"""

from benchmarks.gpu import main

if __name__ == "__main__":
    main()
