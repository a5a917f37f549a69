"""`python train.py fit --config ...`: the command line from a source checkout."""

from lightning_kd.start import main

if __name__ == "__main__":
    main()
