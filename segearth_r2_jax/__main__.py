"""`python -m segearth_r2_jax VERB` is `segearth-r2 VERB`."""

from segearth_r2_jax.cli.main import main

if __name__ == "__main__":
    main()
